"""Convolutions and products, and their gradients, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.models import sharded_layers


def plain(x, kernel):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=numbers
  )


def draw(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return jnp.asarray(rng.standard_normal(shape, np.float32))


@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (5, 3)])
def test_convolve_and_its_gradients(sides):
  x, kernel = draw(3, 6, 8, 4), draw(*sides, 4, 5)
  expected, back = jax.vjp(plain, x, kernel)
  got, ours = jax.vjp(sharded_layers.convolve, x, kernel)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  g = draw(3, 6, 8, 5)
  for a, b in zip(ours(g), back(g), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_convolve_in_a_loop():
  """The kernel's gradient adds up over the turns."""
  x, kernel = draw(2, 3, 6, 6, 4), draw(3, 3, 4, 4)

  def loss(convolve, kernel):
    turn = lambda total, x: (total + jnp.square(convolve(x, kernel)).sum(), ())
    return jax.lax.scan(turn, 0.0, x)[0]

  gradient = lambda f: jax.jit(jax.grad(functools.partial(loss, f)))(kernel)
  expected = gradient(plain)
  np.testing.assert_allclose(
    gradient(sharded_layers.convolve), expected, rtol=1e-4, atol=1e-3
  )


@pytest.mark.parametrize(
  "settings",
  [
    {"strides": 2},
    {"padding": "VALID"},
    {"kernel_dilation": 2},
    {"feature_group_count": 2},
    {"kernel_size": (2, 3)},
  ],
)
def test_a_convolution_that_convolve_is_not(settings):
  conv = sharded_layers.Conv(2, **{"kernel_size": (3, 3), **settings})
  with pytest.raises(ValueError, match="only odd kernel sizes"):
    conv.init(jax.random.key(0), draw(1, 4, 4, 2))


def test_no_gradient_is_computed_for_a_kernel_that_is_frozen():
  """Nor anything kept for it: the compiled program has none of it."""
  x, kernel = draw(2, 8, 8, 4), draw(3, 3, 4, 4)
  loss = lambda x: jnp.square(sharded_layers.convolve(x, kernel)).sum()
  text = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
  assert text.count(" convolution(") == 2
