"""The norm, its modulation and activation, against what they stand for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.models import blocks

GROUPS = 2


def draw(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def plain(params, x, film, activation, mask):
  """Group norm, 1 + scale and shift, activation, one after the other."""
  split = x.reshape(*x.shape[:-1], GROUPS, -1)
  where = None if mask is None else mask[..., None, None]
  over = {"axis": (-4, -3, -1), "keepdims": True, "where": where}
  mean, variance = split.mean(**over), split.var(**over)
  normed = (split - mean) / jnp.sqrt(variance + blocks.NORM_EPS)
  out = normed.reshape(x.shape) * params["scale"] + params["bias"]
  out = out * (1 + film[0]) + film[1]
  exact = {"gelu": lambda x: nn.gelu(x, approximate=False), "silu": nn.silu}
  return exact[activation](out) if activation else out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", ["", "gelu", "silu"])
def test_norm_modulation_and_activation(activation, masked):
  params = {"scale": 1 + draw(6), "bias": draw(6, seed=1)}
  x, film = 3 + 2 * draw(2, 3, 4, 5, 6), draw(2, 2, 1, 1, 1, 6)
  norm = blocks.GroupNorm(GROUPS, activation)
  mask = draw(2, 3, 4, 5, seed=3) > 0 if masked else None
  ours = lambda p, *args: norm.apply({"params": p}, args[0], mask, args[1])
  theirs = lambda *args: plain(*args, activation, mask)
  args = params, x, film
  expected, back = jax.vjp(theirs, *args)
  got, ours_back = jax.vjp(ours, *args)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  g = draw(*x.shape, seed=2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    ours_back(g),
    back(g),
  )


def test_the_norm_on_frames_that_lie_on_devices_of_their_own():
  """Scale and shift are everywhere, their gradients of the frames there."""
  x, norm = draw(2, 3, 4, 4, 6), blocks.GroupNorm(GROUPS)
  params = norm.init(jax.random.key(0), x)
  loss = lambda params, x: jnp.square(norm.apply(params, x)).sum()
  auto = (jax.sharding.AxisType.Auto,)
  spec, mesh = jax.P("data"), jax.make_mesh((1,), ("data",), auto)
  apart = jax.shard_map(
    lambda params, x: jax.lax.psum(loss(params, x), "data"),
    mesh=mesh,
    in_specs=(jax.P(), spec),
    out_specs=jax.P(),
  )
  got, expected = jax.grad(apart)(params, x), jax.grad(loss)(params, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected
  )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near(dtype):
  x, norm = draw(2, 3, 4, 4, 6), blocks.GroupNorm(GROUPS, "gelu")
  params = norm.init(jax.random.key(0), x)
  got = norm.apply(params, x.astype(dtype))
  assert got.dtype == dtype
  expected = norm.apply(params, x)
  np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=2e-2)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
def test_the_norm_of_what_is_far_from_zero(mean):
  """Its variance is a small difference of large numbers."""
  x = draw(1, 16, 16, 4)
  norm = blocks.GroupNorm(GROUPS)
  params = norm.init(jax.random.key(0), x)
  expected = norm.apply(params, x)
  got = norm.apply(params, x + mean)
  np.testing.assert_allclose(got, expected, atol=1e-6 * (1 + mean**2))


def test_an_even_frame_is_not_blown_up():
  x = jnp.full((1, 8, 8, 4), 30.0)
  norm = blocks.GroupNorm(GROUPS)
  got = norm.apply(norm.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(got, 0.0, atol=1e-2)


@pytest.mark.parametrize("x", [-200.0, -5.0, -1.0, 0.0, 1.0, 5.0, 200.0])
def test_gelu_and_its_slope(x):
  x, exact = jnp.float32(x), lambda x: nn.gelu(x, approximate=False)
  close = functools.partial(np.testing.assert_allclose, atol=1e-6)
  close(blocks.gelu(x), exact(x))
  close(jax.grad(blocks.gelu)(x), jax.grad(exact)(x))


def test_gelu_in_bfloat16_has_digits_where_x_is_negative():
  x = jnp.linspace(-3, 3, 301).astype(jnp.bfloat16)
  exact = nn.gelu(x.astype(jnp.float32), approximate=False)
  got = blocks.gelu(x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-4)
