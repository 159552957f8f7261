"""Text encoders in configs, bundles and weight files."""

import gc
import json
import tracemalloc

from flax import serialization
import jax
import numpy as np
import pytest

from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5Config, abstract_params, init_params
from lumiere_jax.models.text_encoder import (
  TextEncoder,
  open_t5,
  open_text_encoder,
  text_encoder_of,
  write_text_part,
)
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.bundle import TEXT, Bundle
from tests.references.t5 import params_to_hf

CAPTIONS = [" A RED circle", ""]


@pytest.mark.parametrize("cleaning", ["none", "lower", "if"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bundles_give_the_encoder_back(tmp_path, dtype, cleaning):
  encoder = open_text_encoder("", "", 12, dtype, cleaning)
  assert encoder.config.dtype == dtype
  part = write_text_part(tmp_path, encoder)
  assert part.meta.get("cleaning", "none") == cleaning
  loaded = text_encoder_of(
    Bundle(folder=tmp_path, parts={TEXT: part}, about={})
  )
  assert loaded.cleaning == cleaning
  assert loaded.identity == encoder.identity
  for ours, theirs in zip(
    loaded.encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_bundles_without_cleaning_have_no_key_for_it(tmp_path):
  part = write_text_part(tmp_path, TextEncoder.random(max_length=12))
  assert set(part.meta) == {"identity", "max_length", "config"}


def test_tensors_are_fetched_one_at_a_time(tmp_path, monkeypatch):
  encoder = TextEncoder.random(max_length=12)
  saved = {}
  monkeypatch.setattr(
    safetensors, "save", lambda path, flat: saved.update(flat)
  )
  write_text_part(tmp_path, encoder)
  for path, leaf in flatten(encoder.params).items():
    assert saved[path] is leaf


CONFIG = T5Config(
  vocab_size=2048, d_model=256, d_ff=512, num_heads=4, d_kv=64, num_layers=8
)

LARGEST = 4 * CONFIG.vocab_size * CONFIG.d_model


def _hugging_face(folder, params):
  content = vars(CONFIG) | {"feed_forward_proj": "gated-gelu"}
  (folder / "config.json").write_text(json.dumps(content))
  safetensors.save(folder / "model.safetensors", params_to_hf(params))
  return folder


def _t5x(folder, params):
  inside = lambda k: k if k.startswith("token_") else f"encoder/{k}"
  flat = {f"target/{inside(k)}": v for k, v in flatten(params).items()}
  file = folder / "checkpoint_1"
  file.write_bytes(serialization.msgpack_serialize(unflatten(flat)))
  return file


@pytest.mark.parametrize("write", [_hugging_face, _t5x])
def test_peak_memory_of_loading(tmp_path, write):
  """That of the result, and of one tensor more."""
  source = write(tmp_path, init_params(CONFIG))
  abstract_params(CONFIG)  # Traced here, so that it is not counted.
  gc.collect()
  tracemalloc.start()
  config, leaves = open_t5(source, "bfloat16")
  opened = tracemalloc.get_traced_memory()[0]
  loaded = {path: np.asarray(leaf) for path, leaf in leaves.items()}
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  size = sum(x.nbytes for x in jax.tree.leaves(loaded))
  print(f"{size / 1e6:.1f} MB took {peak / 1e6:.1f} MB")
  assert config.dtype == "bfloat16"
  assert opened < 0.1 * size
  # A tensor as read, its bytes, and the converted one.
  assert peak < size + 3 * LARGEST < 2 * size
