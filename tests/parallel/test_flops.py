"""FLOP counts against counts by hand."""

import jax
from jax import lax
import jax.numpy as jnp

from lumiere_jax.parallel.flops import count_flops

A, B = jnp.ones((8, 16)), jnp.ones((16, 32))
PRODUCT = 2 * 8 * 16 * 32


def convolve(x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def test_products():
  assert count_flops(jnp.dot, A, B) == PRODUCT
  batched = jnp.ones((5, 8, 16)), jnp.ones((5, 16, 32))
  assert count_flops(jnp.matmul, *batched) == 5 * PRODUCT
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (A, B)]
  assert count_flops(jnp.dot, *shapes) == PRODUCT


def test_convolutions_and_their_gradients():
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
  once = 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
  assert count_flops(convolve, x, kernel) == once
  loss = lambda x, kernel: jnp.square(convolve(x, kernel)).sum()
  assert count_flops(jax.grad(loss, 0), x, kernel) == 2 * once
  assert count_flops(jax.grad(loss, 1), x, kernel) == 2 * once
  assert count_flops(jax.grad(loss, (0, 1)), x, kernel) == 3 * once


def test_loops_count_as_often_as_they_run():
  square = jnp.ones((16, 16))
  body = lambda x, _: (x @ square, None)
  loop = lambda x: lax.scan(body, x, None, length=7)[0]
  once = 2 * 8 * 16 * 16
  assert count_flops(loop, A) == 7 * once
  assert count_flops(jax.jit(loop), A) == 7 * once
  outer = lambda x, _: (loop(x), None)
  nested = lambda x: lax.scan(outer, x, None, length=3)[0]
  assert count_flops(nested, A) == 21 * once


def test_the_most_expensive_branch_counts():
  choose = lambda x: lax.cond(
    x.sum() > 0, lambda x: x @ B, lambda x: x @ B * 0, x
  )
  assert count_flops(choose, A) == PRODUCT


def test_frozen_weights_have_no_gradient_cost():
  """x W1 W2 with W1 frozen: forward twice, and the gradient of W2 alone."""
  w1, w2 = jnp.ones((16, 16)), jnp.ones((16, 16))
  loss = lambda w2, w1: jnp.square(A @ w1 @ w2).sum()
  assert count_flops(jax.grad(loss), w2, w1) == 3 * (2 * 8 * 16 * 16)


def test_unused_results_do_not_count():
  assert count_flops(lambda a, b: (a @ b, a)[1], A, B) == 0


def test_rematerialisation_counts():
  w = jnp.ones((16, 16))
  layer = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w)
  loss = lambda f: lambda w: jnp.square(f(w, A)).sum()
  plain = count_flops(jax.grad(loss(layer)), w)
  again = count_flops(jax.grad(loss(jax.checkpoint(layer))), w)
  assert plain == 5 * (2 * 8 * 16 * 16)
  assert again > plain
