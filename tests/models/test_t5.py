"""The T5 encoder against plain numpy and stored outputs of transformers."""

import dataclasses
import functools
import json
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models.t5 import (
  T5_SIZES,
  T5Config,
  T5Encoder,
  abstract_params,
  init_params,
  relative_position_bucket,
)
from lumiere_jax.storage import safetensors
from tests.references import t5
from tests.references.t5 import load_t5, params_from_hf

SMALL = T5Config(
  vocab_size=50,
  d_model=12,
  d_ff=20,
  num_heads=3,
  d_kv=8,
  num_layers=3,
  num_buckets=16,
  max_distance=40,
)


def hf_weights(config, seed=0):
  """Random tensors under the published names; nothing is 0 or 1."""
  rng = np.random.default_rng(seed)
  width = config.num_heads * config.d_kv
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32) * 0.3
  scale = lambda: 1 + draw(config.d_model)
  tensors = {
    "shared.weight": draw(config.vocab_size, config.d_model) * 3,
    "encoder.final_layer_norm.weight": scale(),
  }
  for i in range(config.num_layers):
    block = f"encoder.block.{i}.layer"
    attention = f"{block}.0.SelfAttention"
    for name in "qkv":
      tensors[f"{attention}.{name}.weight"] = draw(width, config.d_model)
    tensors[f"{attention}.o.weight"] = draw(config.d_model, width)
    dense = f"{block}.1.DenseReluDense"
    tensors[f"{dense}.wi_0.weight"] = draw(config.d_ff, config.d_model)
    tensors[f"{dense}.wi_1.weight"] = draw(config.d_ff, config.d_model)
    tensors[f"{dense}.wo.weight"] = draw(config.d_model, config.d_ff)
    for j in (0, 1):
      tensors[f"{block}.{j}.layer_norm.weight"] = scale()
  tensors[
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  ] = draw(config.num_buckets, config.num_heads)
  return tensors


def _bucket(distance, num_buckets, max_distance):
  """From the definition, in exact integers."""
  half = num_buckets // 2
  exact = half // 2
  size = abs(distance)
  if size >= exact:
    steps = half - exact
    # The largest j with size / exact >= (max_distance / exact) ** (j / steps).
    j = 0
    while j + 1 < steps and size**steps * exact ** (
      j + 1
    ) >= exact**steps * max_distance ** (j + 1):
      j += 1
    size = exact + j
  return size + (half if distance > 0 else 0)


def _numpy_t5(tensors, config, ids):
  """Features (l, e) of the ids of one text without padding, in float64."""
  get = lambda name: tensors[name].astype(np.float64)

  def norm(x, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * get(name)

  table = get(
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  )
  x = get("shared.weight")[ids]
  for i in range(config.num_layers):
    block = f"encoder.block.{i}.layer"
    y = norm(x, f"{block}.0.layer_norm.weight")
    weight = lambda n, b=block: get(f"{b}.0.SelfAttention.{n}.weight")
    q, k, v = (y @ weight(n).T for n in "qkv")
    mixed = np.zeros_like(q)
    for head in range(config.num_heads):
      cols = slice(head * config.d_kv, (head + 1) * config.d_kv)
      for a in range(len(ids)):
        logits = [
          q[a, cols] @ k[b, cols]
          + table[_bucket(b - a, config.num_buckets, config.max_distance), head]
          for b in range(len(ids))
        ]
        p = np.exp(np.array(logits) - max(logits))
        mixed[a, cols] = (p / p.sum()) @ v[:, cols]
    x = x + mixed @ weight("o").T
    y = norm(x, f"{block}.1.layer_norm.weight")
    dense = lambda n, b=block: get(f"{b}.1.DenseReluDense.{n}.weight").T
    g = y @ dense("wi_0")
    gelu = g / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    x = x + (gelu * (y @ dense("wi_1"))) @ dense("wo")
  return norm(x, "encoder.final_layer_norm.weight")


@functools.cache
def _compiled(config):
  return jax.jit(lambda p, *x: T5Encoder(config).apply({"params": p}, *x))


def _encode(params, config, ids, mask=None):
  mask = np.ones(np.shape(ids), bool) if mask is None else mask
  return np.asarray(_compiled(config)(params, np.int32(ids), mask))


def test_equals_an_independent_implementation():
  tensors = hf_weights(SMALL)
  params = params_from_hf(tensors, SMALL)
  rng = np.random.default_rng(1)
  lengths = (50, 23, 1)  # 50 goes beyond max_distance.
  ids = rng.integers(0, SMALL.vocab_size, (3, 50))
  mask = np.arange(50) < np.array(lengths)[:, None]
  ours = _encode(params, SMALL, ids, mask)
  assert ours.dtype == np.float32
  for i, length in enumerate(lengths):
    theirs = _numpy_t5(tensors, SMALL, ids[i, :length])
    np.testing.assert_allclose(ours[i, :length], theirs, atol=1e-5)


def test_padding_changes_nothing_but_itself():
  params = params_from_hf(hf_weights(SMALL), SMALL)
  rng = np.random.default_rng(2)
  ids = np.repeat(rng.integers(0, SMALL.vocab_size, (1, 9)), 2, axis=0)
  mask = np.repeat([[True] * 5 + [False] * 4], 2, axis=0)
  ids[1, 5:] = (ids[0, 5:] + 7) % SMALL.vocab_size
  out = _encode(params, SMALL, ids, mask)
  np.testing.assert_array_equal(out[0, :5], out[1, :5])
  assert (np.abs(out[0, 5:] - out[1, 5:]).max(axis=-1) > 1e-2).all()
  # The mask matters: without it the padding is read.
  assert np.abs(_encode(params, SMALL, ids)[0, :5] - out[0, :5]).max() > 1e-2


@pytest.mark.parametrize(
  ("num_buckets", "max_distance"), [(32, 128), (16, 40), (8, 100)]
)
def test_buckets_follow_the_definition(num_buckets, max_distance):
  distance = np.arange(-300, 301)
  expected = [_bucket(int(d), num_buckets, max_distance) for d in distance]
  ours = relative_position_bucket(distance, num_buckets, max_distance)
  np.testing.assert_array_equal(ours, expected)


def test_bfloat16_keeps_norms_and_bias_in_float32_and_stays_near():
  tensors = hf_weights(SMALL)
  half = dataclasses.replace(SMALL, dtype="bfloat16")
  params = params_from_hf(tensors, half)
  flat = traverse_util.flatten_dict(params, sep="/")
  for path, value in flat.items():
    exact = path.endswith(("scale", "rel_embedding"))
    assert value.dtype == (np.float32 if exact else ml_dtypes.bfloat16), path
  ids = np.arange(20)[None] % SMALL.vocab_size
  ours = _encode(params, half, ids)
  theirs = _encode(params_from_hf(tensors, SMALL), SMALL, ids)
  assert ours.dtype == np.float32
  error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
  assert 0 < error < 0.05


def test_other_dtypes_are_refused():
  with pytest.raises(UserError, match=r"'float16' is not one of .*bfloat16"):
    dataclasses.replace(SMALL, dtype="float16")


GOLDEN_LAYER = {
  "attention/key/kernel": (64, 64),
  "attention/out/kernel": (64, 64),
  "attention/query/kernel": (64, 64),
  "attention/value/kernel": (64, 64),
  "mlp/wi_0/kernel": (64, 128),
  "mlp/wi_1/kernel": (64, 128),
  "mlp/wo/kernel": (128, 64),
  "pre_attention_layer_norm/scale": (64,),
  "pre_mlp_layer_norm/scale": (64,),
}


def test_golden_parameter_tree():
  golden = {
    "token_embedder/embedding": (1024, 64),
    "relpos_bias/rel_embedding": (4, 32),
    "encoder_norm/scale": (64,),
    **{f"layers_0/{k}": v for k, v in GOLDEN_LAYER.items()},
    **{f"layers_1/{k}": v for k, v in GOLDEN_LAYER.items()},
  }
  tree = abstract_params(T5_SIZES["tiny"])
  assert {k: v.shape for k, v in tree.items()} == golden
  params = traverse_util.flatten_dict(init_params(T5_SIZES["tiny"]), sep="/")
  assert {k: v.shape for k, v in params.items()} == golden


@pytest.mark.parametrize(
  ("size", "millions"),
  [
    ("tiny", 0.148),
    ("small", 35.3),
    ("base", 109.6),
    ("large", 341.2),
    ("xl", 1223.5),
    ("xxl", 4762.3),
  ],
)
def test_parameter_counts(size, millions):
  count = sum(
    math.prod(s.shape) for s in abstract_params(T5_SIZES[size]).values()
  )
  assert count / 1e6 == pytest.approx(millions, rel=1e-3)


def test_untrained_features_tell_words_contexts_and_orders_apart():
  config = T5_SIZES["tiny"]
  params = init_params(config)
  red, circle, blue, square = 300, 400, 500, 600
  texts = np.array(
    [
      [red, circle, 9, blue, square, 1],
      [blue, circle, 9, red, square, 1],
      [red, circle, 9, blue, circle, 1],
    ]
  )
  out = _encode(params, config, texts)
  rms = lambda x: np.sqrt(np.mean(np.square(x), axis=-1))
  np.testing.assert_allclose(rms(out), 1, atol=1e-3)
  unit = out[0] / np.linalg.norm(out[0], axis=-1, keepdims=True)
  cosines = (unit @ unit.T)[~np.eye(6, dtype=bool)]
  assert cosines.max() < 0.7
  assert np.abs(cosines).mean() < 0.3
  # Words that stay see which ones changed places, and another's change.
  assert rms(out[0] - out[1])[[1, 2, 4, 5]].min() > 0.1
  assert rms(out[0] - out[2])[[0, 1, 2, 3, 5]].min() > 0.1


def test_initialisation_depends_on_the_seed_only():
  tiny = T5_SIZES["tiny"]
  leaves = [
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(init_params(tiny, s))])
    for s in (0, 0, 1)
  ]
  np.testing.assert_array_equal(leaves[0], leaves[1])
  assert (leaves[0] != leaves[2]).mean() > 0.9  # All but the norms' ones.


ENCODER = json.loads((t5.FOLDER / "encoder.json").read_text())


@pytest.mark.parametrize("name", ENCODER["cases"])
def test_features_equal_transformers(tmp_path, name):
  """Stored by `python -m tests.references.make_t5`; see tests/parity."""
  case = ENCODER["cases"][name]
  assert case["config"] == t5.CONFIGS[name]
  tensors = t5.weights(**case)
  safetensors.save(tmp_path / "model.safetensors", tensors)
  (tmp_path / "config.json").write_text(json.dumps(case["config"]))
  config, params = load_t5(tmp_path)
  ids, mask = t5.tokens(config.vocab_size)
  ours = jax.jit(T5Encoder(config).apply)({"params": params}, ids, mask)
  error = t5.relative_error(ours, np.load(t5.FOLDER / f"{name}.npy"))
  print(f"{name}: differs from transformers by {error:.2e} of a feature")
  assert error < 1e-5


def test_buckets_of_t5_at_known_distances():
  distance = np.array([0, -1, -7, -8, -16, -64, -128, -999, 1, 8, 128])
  ours = relative_position_bucket(distance, 32, 128)
  assert ours.tolist() == [0, 1, 7, 8, 10, 14, 15, 15, 17, 24, 31]


def test_full_size_gives_the_width_if_expects():
  config = T5_SIZES["xxl"]
  params = traverse_util.unflatten_dict(abstract_params(config), sep="/")
  tokens = jax.ShapeDtypeStruct((2, 77), jnp.int32)
  mask = jax.ShapeDtypeStruct((2, 77), bool)
  apply = lambda p, *x: T5Encoder(config).apply({"params": p}, *x)
  out = jax.eval_shape(apply, params, tokens, mask)
  assert (out.shape, out.dtype) == ((2, 77, 4096), jnp.float32)
