"""Blocks against their definitions in plain jax and numpy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.models import blocks
from lumiere_jax.models.config import ExecutionConfig
from tests.conftest import random_params, small_config

GROUPS = 2
UNIT = {"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}


def draw(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def close_trees(got, expected):
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, got, expected)


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
  g = draw(*x.shape, seed=2)

  @jax.jit
  def both(*args):
    ours_out, ours_back = jax.vjp(ours, *args)
    out, back = jax.vjp(theirs, *args)
    return (ours_out, out), (ours_back(g), back(g))

  outputs, gradients = both(*args)
  np.testing.assert_allclose(*outputs, atol=1e-5)
  close_trees(*gradients)


def test_norm_of_sharded_frames():
  """Scale and shift are replicated; their gradients are of local frames."""
  x, norm = draw(2, 3, 4, 4, 6), blocks.GroupNorm(GROUPS)
  loss = lambda params, x: jnp.square(norm.apply(params, x)).sum()
  auto = (jax.sharding.AxisType.Auto,)
  apart = jax.shard_map(
    lambda params, x: jax.lax.psum(loss(params, x), "data"),
    mesh=jax.make_mesh((1,), ("data",), auto),
    in_specs=(jax.P(), jax.P("data")),
    out_specs=jax.P(),
  )
  gradient = lambda loss: jax.jit(jax.grad(loss))(UNIT, x)
  close_trees(gradient(apart), gradient(loss))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near(dtype):
  x, norm = draw(2, 3, 4, 4, 6), blocks.GroupNorm(GROUPS, "gelu")
  got = norm.apply(UNIT, x.astype(dtype))
  assert got.dtype == dtype
  expected = norm.apply(UNIT, x)
  np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=2e-2)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
def test_norm_of_values_far_from_zero(mean):
  """The variance is a small difference of large numbers."""
  x, norm = draw(1, 16, 16, 6), blocks.GroupNorm(GROUPS)
  got, expected = norm.apply(UNIT, x + mean), norm.apply(UNIT, x)
  np.testing.assert_allclose(got, expected, atol=1e-6 * (1 + mean**2))


def test_norm_of_constant_and_of_masked_frames_is_finite():
  x, norm = jnp.full((1, 8, 8, 6), 30.0), blocks.GroupNorm(GROUPS)
  np.testing.assert_allclose(norm.apply(UNIT, x), 0.0, atol=1e-2)
  none = jnp.zeros(x.shape[:-1], bool)
  assert jnp.isfinite(norm.apply(UNIT, draw(*x.shape), none)).all()


@pytest.mark.parametrize("x", [-200.0, -5.0, -1.0, 0.0, 1.0, 5.0, 200.0])
def test_gelu_and_its_slope(x):
  x, exact = jnp.float32(x), lambda x: nn.gelu(x, approximate=False)
  np.testing.assert_allclose(blocks.gelu(x), exact(x), atol=1e-6)
  got, expected = jax.grad(blocks.gelu)(x), jax.grad(exact)(x)
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_gelu_in_bfloat16_has_digits_where_x_is_negative():
  x = jnp.linspace(-3, 3, 301).astype(jnp.bfloat16)
  exact = nn.gelu(x.astype(jnp.float32), approximate=False)
  got = blocks.gelu(x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-4)


def test_sinusoid_is_cosines_then_sines():
  times = np.array([0.0, 0.25, 0.999])
  out = np.asarray(blocks.sinusoid(jnp.asarray(times), 8))
  steps = 1000 * times[:, None]
  freqs = 1e4 ** (-np.arange(4) / 4)
  expected = np.concatenate([np.cos(steps * freqs), np.sin(steps * freqs)], 1)
  np.testing.assert_allclose(out, expected, atol=2e-4)


def test_attention_is_softmax_over_text_then_pixels(rng):
  config = small_config(head_dim=4, norm_groups=2)
  block = blocks.TextAttention(config, ExecutionConfig(), True)
  x = rng.standard_normal((1, 2, 2, 3, 8)).astype(np.float32)
  text = rng.standard_normal((1, 5, 6)).astype(np.float32)
  mask = np.array([[True, True, True, False, False]])
  p = random_params(block, rng, x, text, mask)
  out = jax.jit(block.apply)({"params": p}, x, text, mask)

  def norm(x, name):  # over positions and the channels of each of 2 groups
    g = x.reshape(-1, 2, x.shape[-1] // 2)
    g = (g - g.mean((0, 2), keepdims=True)) / np.sqrt(
      g.var((0, 2), keepdims=True) + 1e-5
    )
    return g.reshape(x.shape) * p[name]["scale"] + p[name]["bias"]

  dense = lambda x, name: (
    np.einsum("pc,c...->p...", x, p[name]["kernel"]) + p[name]["bias"]
  )
  # Masked tokens have no effect, not even on the norm.
  kv_text = dense(norm(text[0, :3], "norm_text"), "text_kv")
  for t in range(2):
    pixels = x[0, t].reshape(6, 8)
    qkv = dense(norm(pixels, "norm"), "qkv")
    heads = []
    for n in range(2):
      keys = np.concatenate([kv_text[:, 0, n], qkv[:, 1, n]])
      values = np.concatenate([kv_text[:, 1, n], qkv[:, 2, n]])
      logits = qkv[:, 0, n] @ keys.T / 2.0
      weights = np.exp(logits - logits.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ values)
    expected = (
      np.einsum("npd,ndc->pc", np.stack(heads), p["out"]["kernel"])
      + p["out"]["bias"]
    )
    np.testing.assert_allclose(
      out[0, t].reshape(6, 8), pixels + expected, atol=2e-4, rtol=2e-4
    )


def test_patches_hold_every_pixel(rng):
  x = jnp.asarray(rng.normal(size=(2, 3, 6, 4, 5)), jnp.float32)
  patches = blocks.to_patches(x, 2)
  assert patches.shape == (2, 3, 3, 2, 20)
  np.testing.assert_array_equal(
    patches[0, 1, 2, 1].reshape(2, 2, 5), x[0, 1, 4:6, 2:4]
  )
  np.testing.assert_array_equal(blocks.to_pixels(patches, 2), x)
