"""Low-rank adapters: merged equals applied; misfits are errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models import lora
from lumiere_jax.models.config import TemporalConfig
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.storage.safetensors import LazyArray
from tests.conftest import make_cond, random_leaves, run, small_config

# Every kind of layer that has a kernel, on two levels.
CONFIG = small_config(
  channels=(16, 32),
  num_res_blocks=(1, 1),
  attention=("none", "self"),
  cond_channels=4,
  temporal=TemporalConfig(
    resample=(True,), num_attentions=1, head_dim=8, max_distance=32
  ),
)

FLAT = random_leaves(CONFIG)
RANK = 2


def adapter(target=".*", seed=3):
  """An adapter that changes something: B is not zero."""
  fresh = lora.init_adapter(FLAT, target, RANK, jax.random.key(0))
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
  return {k: draw(v) if k.endswith("/b") else v for k, v in fresh.items()}


def inputs():
  keys = jax.random.split(jax.random.key(5))
  z = jax.random.normal(keys[0], (2, 4, 8, 8, 3))
  return z, make_cond(2, jax.random.normal(keys[1], (*z.shape[:-1], 4)))


def apply(given, scale=1.0):
  z, cond = inputs()
  with lora.applied(given, scale):
    network = jax.jit(UNet(CONFIG).apply)
    return network({"params": unflatten(FLAT)}, z, jnp.full(2, 0.4), cond)


def test_merged_equals_applied():
  given = adapter()
  plain = run(CONFIG, FLAT, *inputs())
  merged = run(
    CONFIG, lora.merge({**FLAT, **lora.scaled(given, 0.5)}), *inputs()
  )
  assert np.abs(merged - plain).max() > 0.1 * np.abs(plain).max()
  np.testing.assert_allclose(apply(given, 0.5), merged, atol=2e-5)


def test_it_covers_every_kernel_and_is_the_identity_at_first():
  fresh = lora.init_adapter(FLAT, ".*", RANK, jax.random.key(0))
  every = [k for k in FLAT if k.endswith("/kernel")]
  assert sorted(lora.kernels(fresh)) == sorted(every)
  merged = lora.merge({**FLAT, **fresh})
  assert merged.keys() == FLAT.keys()
  for path, leaf in FLAT.items():
    np.testing.assert_array_equal(merged[path], leaf, err_msg=path)


def test_the_correction_has_the_rank_it_says():
  merged = lora.merge({**FLAT, **adapter()})
  for path in ("mid_0/conv_0/kernel", "mid_attention/out/kernel"):
    change = np.asarray(merged[path]) - np.asarray(FLAT[path])
    matrix = change.reshape(-1, change.shape[-1])
    assert np.linalg.matrix_rank(matrix, tol=1e-4) == RANK


def test_targets_choose_layers():
  temporal = lora.kernels(adapter("temporal"))
  spatial = lora.kernels(adapter("spatial"))
  assert temporal
  assert all(k.startswith("temporal_") for k in temporal)
  assert "cond_in/kernel" not in spatial
  every = {k for k in FLAT if k.endswith("/kernel")}
  assert {*temporal, *spatial, "cond_in/kernel"} == every
  assert lora.kernels(adapter("attention/qkv")) == [
    k for k in FLAT if k.endswith("attention/qkv/kernel")
  ]


@pytest.mark.parametrize(
  ("target", "words"),
  [("nothing_here", "matches no parameter.*kernel"), ("(", "not a regular")],
)
def test_targets_that_cannot_be_used(target, words):
  with pytest.raises(UserError, match=words):
    adapter(target)


def test_another_model_is_refused_by_leaf():
  other = {k: v for k, v in FLAT.items() if k != "mid_0/conv_0/kernel"}
  other["mid_1/conv_0/kernel"] = jnp.zeros((3, 3, 8, 32))
  words = "no mid_0/conv_0/kernel, mid_1/conv_0/kernel of another shape"
  with pytest.raises(UserError, match=words):
    lora.merge({**other, **adapter()})


def test_half_precision_sums_are_rounded_once():
  """2049.0002 is nearer to 2050 than to 2048; 2049, of a change that was
  rounded before, is not."""
  weight = np.full((1, 1), 2048, np.float16)
  low = {"a": np.float32([[1]]), "b": np.float32([[1.0002]])}
  adapter = {f"lora/skip/kernel/{x}": value for x, value in low.items()}
  merged = lora.merge({"skip/kernel": weight, **adapter})["skip/kernel"]
  assert merged.dtype == np.float16
  assert merged == 2050
  assert weight + np.float16(1.0002) == 2048


def test_lazy_weights_stay_lazy():
  made = []

  def make(path):
    made.append(path)
    return FLAT[path]

  lazy = {
    k: LazyArray(v.shape, np.dtype(v.dtype), lambda k=k: make(k))
    for k, v in FLAT.items()
  }
  given = adapter("attention")
  merged = lora.merge({**lazy, **given})
  assert not made
  expected = lora.merge({**FLAT, **given})
  for path, leaf in merged.items():
    assert isinstance(leaf, LazyArray)
    np.testing.assert_array_equal(leaf, expected[path])


def test_merging_keeps_the_precision_of_the_weights():
  half = {k: v.astype(jnp.bfloat16) for k, v in FLAT.items()}
  merged = lora.merge({**half, **adapter()})
  assert {v.dtype for v in merged.values()} == {jnp.dtype(jnp.bfloat16)}
