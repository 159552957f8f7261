"""T5 weights under the names of Hugging Face, in memory and in files."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.storage import safetensors
from tests.models.test_t5 import SMALL, hf_weights
from tests.references.t5 import load_t5, params_from_hf, params_to_hf, write_hf


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_hf_names_round_trip():
  tensors = hf_weights(SMALL)
  _equal(params_to_hf(params_from_hf(tensors, SMALL)), tensors)


def test_the_rest_of_a_full_t5_is_ignored():
  tensors = hf_weights(SMALL)
  expected = params_from_hf(tensors, SMALL)
  tensors["lm_head.weight"] = np.ones((50, 12))
  tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((24, 12))
  tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
  _equal(params_from_hf(tensors, SMALL), expected)
  del tensors["shared.weight"]
  _equal(params_from_hf(tensors, SMALL), expected)


def test_misfits_are_named():
  tensors = hf_weights(SMALL)
  name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
  without = {k: v for k, v in tensors.items() if k != name}
  with pytest.raises(UserError, match=rf"1 tensor is missing \({name}\)"):
    params_from_hf(without, SMALL)
  turned = tensors | {name: tensors[name].T}
  with pytest.raises(
    UserError, match=rf"{name} \(20, 12\) instead of \(12, 20\)"
  ):
    params_from_hf(turned, SMALL)
  shallow = dataclasses.replace(SMALL, num_layers=2)
  with pytest.raises(UserError, match=r"9 tensors are unknown .*block\.2"):
    params_from_hf(tensors, shallow)


def test_one_file_loads_as_a_folder_and_by_name(tmp_path):
  tensors = hf_weights(SMALL)
  write_hf(tmp_path, SMALL, tensors | {"lm_head.weight": np.ones((50, 12))})
  file = tmp_path / "model.safetensors"
  for source in (tmp_path, file, str(file)):
    config, params = load_t5(source)
    assert config == SMALL
    _equal(params, params_from_hf(tensors, SMALL))


def test_shards_load_by_their_index(tmp_path):
  tensors = hf_weights(SMALL)
  write_hf(tmp_path, SMALL, {})
  names, weight_map = sorted(tensors), {}
  for i in range(3):
    file = f"model-0000{i + 1}-of-00003.safetensors"
    shard = {n: tensors[n] for n in names[i::3]}
    safetensors.save(tmp_path / file, shard)
    weight_map |= dict.fromkeys(shard, file)
  # A shard without encoder tensors is not even opened.
  weight_map["decoder.final_layer_norm.weight"] = "not-there.safetensors"
  # A second copy of the weights beside them must not confuse.
  safetensors.save(tmp_path / "copy.safetensors", tensors)
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  _equal(load_t5(tmp_path)[1], params_from_hf(tensors, SMALL))
  index.unlink()
  with pytest.raises(UserError, match="more than one file holds"):
    load_t5(tmp_path)
  (tmp_path / "copy.safetensors").unlink()
  _equal(load_t5(tmp_path)[1], params_from_hf(tensors, SMALL))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_weights_become_the_dtype_asked_for(tmp_path, stored):
  tensors = {k: v.astype(stored) for k, v in hf_weights(SMALL).items()}
  write_hf(tmp_path, SMALL, tensors)
  for dtype in ("float32", "bfloat16"):
    config, params = load_t5(tmp_path, dtype)
    assert config == dataclasses.replace(SMALL, dtype=dtype)
    kernel = params["layers_2"]["mlp"]["wo"]["kernel"]
    name = "encoder.block.2.layer.1.DenseReluDense.wo.weight"
    np.testing.assert_array_equal(kernel, tensors[name].T.astype(dtype))
    scale = params["encoder_norm"]["scale"]
    assert scale.dtype == np.float32
    name = "encoder.final_layer_norm.weight"
    np.testing.assert_array_equal(scale, tensors[name].astype(np.float32))


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("layer_norm_epsilon", 1e-5),
    ("dense_act_fn", "relu"),
    ("is_gated_act", False),
    ("model_type", "umt5"),
    ("pruned_heads", {"0": [1]}),
    ("quantization_config", {"bits": 8}),
    ("of_the_future", 1),
  ],
)
def test_keys_that_change_the_features_are_refused_by_name(
  tmp_path, key, value
):
  fine = {"dropout_rate": 0.3, "id2label": {"0": "a"}, "torch_dtype": "float16"}
  fine |= {"model_type": "mt5", "layer_norm_epsilon": 1e-6, "future": None}
  write_hf(tmp_path, SMALL, hf_weights(SMALL), **fine)
  assert load_t5(tmp_path)[0] == SMALL
  write_hf(tmp_path, SMALL, {}, **fine | {key: value})
  with pytest.raises(UserError, match=rf"config\.json: .*{key}"):
    load_t5(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path):
  tensors = hf_weights(SMALL)
  name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
  tensors[name][3, 2] = np.nan
  write_hf(tmp_path, SMALL, tensors)
  with pytest.raises(UserError, match=rf"model.safetensors: {name} has values"):
    load_t5(tmp_path)


def test_files_that_are_not_t5_v1_1_are_refused(tmp_path):
  def refused(words, source=tmp_path):
    with pytest.raises(UserError, match=words):
      load_t5(source)

  refused("none: no such file or folder", tmp_path / "none")
  refused(r"config\.json: no such file")
  (tmp_path / "config.json").write_text("{")
  refused(r"config\.json: not JSON")
  write_hf(tmp_path, SMALL, {}, feed_forward_proj="relu")
  refused("feed_forward_proj is 'relu'")
  write_hf(tmp_path, SMALL, {})
  refused(r"holds no \.safetensors file")
  write_hf(tmp_path, SMALL, {"x": np.ones(2)})
  refused(r"30 tensors are missing .*d_model 12, 3 layers")
  (tmp_path / "config.json").write_text('{"feed_forward_proj": "gated-gelu"}')
  refused(r"config\.json: 'd_model' is missing")
