"""Temporal layers against plain numpy and Lumiere's appendix B."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.models import temporal
from lumiere_jax.models.config import ExecutionConfig, TemporalConfig
from tests.conftest import random_params

RUN = ExecutionConfig()
CONV = temporal.TemporalConv(temporal.identity_taps, "float32")


def layers(**changes) -> TemporalConfig:
  return TemporalConfig(resample=(), head_dim=4, **changes)


def apply(module, x, params=None):
  params = params or module.init(jax.random.key(0), x)["params"]
  return np.asarray(module.apply({"params": params}, x))


def test_convolution_repeats_the_edge_frames(rng):
  x = rng.standard_normal((2, 5, 1, 2, 3)).astype(np.float32)
  kernel = rng.standard_normal((3, 3, 3)).astype(np.float32)
  bias = rng.standard_normal(3).astype(np.float32)
  out = apply(CONV, x, {"kernel": kernel, "bias": bias})
  for t in range(5):
    before, after = max(t - 1, 0), min(t + 1, 4)
    expected = (
      x[:, before] @ kernel[0] + x[:, t] @ kernel[1] + x[:, after] @ kernel[2]
    )
    np.testing.assert_allclose(out[:, t], expected + bias, atol=1e-5)


@pytest.mark.parametrize("frames", [2, 6])
def test_resampling_is_part_of_the_convolution(rng, frames):
  x = rng.standard_normal((2, frames, 2, 2, 4)).astype(np.float32)
  params = {
    "kernel": rng.standard_normal((3, 4, 4)).astype(np.float32),
    "bias": np.ones(4, np.float32),
  }

  conv = lambda x, kind: apply(CONV.copy(resample=kind), x, params)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  close(conv(x, "down"), conv(x, "none")[:, ::2])
  close(conv(x, "up"), conv(np.repeat(x, 2, axis=1), "none"))


def test_odd_frames_cannot_be_halved():
  module = temporal.TemporalResample("down", "float32")
  with pytest.raises(ValueError, match="3 frames"):
    module.init(jax.random.key(0), jnp.zeros((1, 3, 2, 2, 4)))


def test_80_40_20_10_80_is_nearest_neighbour_at_first(rng):
  """Down is striding, up is frame duplication (appendix B)."""
  x = video = rng.standard_normal((1, 80, 2, 2, 4)).astype(np.float32)
  lengths = [x.shape[1]]
  for _ in range(3):
    x = apply(temporal.TemporalResample("down", "float32"), x)
    lengths.append(x.shape[1])
  np.testing.assert_array_equal(x, video[:, ::8])
  for _ in range(3):
    x = apply(temporal.TemporalResample("up", "float32"), x)
  lengths.append(x.shape[1])
  assert lengths == [80, 40, 20, 10, 80]
  np.testing.assert_array_equal(x, np.repeat(video[:, ::8], 8, axis=1))


@pytest.mark.parametrize(
  "module",
  [
    temporal.ConvInflation(layers(), 2, RUN),
    temporal.AttentionInflation(
      layers(num_attentions=3, max_distance=8), 2, RUN
    ),
  ],
)
def test_inflation_blocks_start_as_the_identity_and_can_leave_it(rng, module):
  x = rng.standard_normal((1, 4, 3, 3, 8)).astype(np.float32)
  params = module.init(jax.random.key(0), x)["params"]
  np.testing.assert_array_equal(apply(module, x, params), x)
  moved = jax.tree.map(
    lambda p: p + 0.3 * jnp.asarray(rng.standard_normal(p.shape)), params
  )
  out = apply(module, x, moved)
  assert np.abs(out - x).max() > 1e-2
  # and frames then do see each other:
  other = x.copy()
  other[:, 3] = rng.standard_normal((1, 3, 3, 8))
  assert np.abs(apply(module, other, moved) - out)[:, 2].max() > 1e-4


def test_attention_bias_depends_on_the_distance_in_frames(rng):
  module = temporal.TemporalAttention(layers(max_distance=2), 1, RUN)
  x = rng.standard_normal((1, 5, 1, 1, 4)).astype(np.float32)
  p = random_params(module, rng, x)
  out = apply(module, x, p)[0, :, 0, 0]
  frames = x[0, :, 0, 0]
  normed = (frames - frames.mean(1, keepdims=True)) / np.sqrt(
    frames.var(1, keepdims=True) + 1e-5
  ) * p["norm"]["scale"] + p["norm"]["bias"]
  q, k, v = np.moveaxis(
    np.einsum("tc,cpnd->tpnd", normed, p["qkv"]["kernel"])[:, :, 0], 1, 0
  )
  logits = q @ k.T / 2.0
  for i, j in np.ndindex(5, 5):  # beyond distance 2 the bias is shared
    logits[i, j] += p["position_bias"][np.clip(j - i, -2, 2) + 2, 0]
  weights = np.exp(logits - logits.max(1, keepdims=True))
  weights /= weights.sum(1, keepdims=True)
  expected = frames + weights @ v @ p["proj"]["kernel"] + p["proj"]["bias"]
  np.testing.assert_allclose(out, expected, atol=1e-4)


def test_attention_sees_the_text_beside_the_frames(rng):
  module = temporal.TemporalAttention(layers(max_distance=3), 1, RUN)
  x = rng.standard_normal((2, 3, 1, 2, 4)).astype(np.float32)
  text = rng.standard_normal((2, 5, 6)).astype(np.float32)
  mask = np.arange(5) < np.array([[3], [5]])
  p = random_params(module, rng, x, text, mask)
  out = module.apply({"params": p}, x, text, mask)

  def norm(x, leaves):
    scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return scaled * leaves["scale"] + leaves["bias"]

  for sample, column in np.ndindex(2, 2):
    # Norms are over both positions of a frame, and over all tokens.
    frames = np.stack(
      [norm(frame, p["norm"])[0, column] for frame in x[sample]]
    )
    tokens = norm(text[sample][mask[sample]], p["norm_text"])
    q, k, v = np.einsum("tc,cpnd->ptd", frames, p["qkv"]["kernel"])
    kv = np.einsum("tc,cpnd->ptd", tokens, p["text_kv"]["kernel"])
    own_k, own_v = kv + p["text_kv"]["bias"].sum(1)[:, None]
    logits = np.concatenate([q @ own_k.T, q @ k.T], 1) / 2.0
    for i, j in np.ndindex(3, 3):
      logits[i, len(tokens) + j] += p["position_bias"][j - i + 3, 0]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    seen = weights @ np.concatenate([own_v, v])
    expected = (
      x[sample, :, 0, column] + seen @ p["proj"]["kernel"] + p["proj"]["bias"]
    )
    np.testing.assert_allclose(out[sample, :, 0, column], expected, atol=1e-4)
