"""Loading needs the memory of what is loaded, and of one tensor more."""

import gc
import json
import tracemalloc

from flax import serialization
import jax
import numpy as np
import pytest

from lumiere_jax.models.importers.t5_hf import params_to_hf
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5Config, abstract_params, init_params
from lumiere_jax.models.text_encoder import open_t5
from lumiere_jax.storage import safetensors

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
def test_peak_of_memory(tmp_path, write):
  source = write(tmp_path, init_params(CONFIG))
  abstract_params(CONFIG)  # traced once, so that it is not counted
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
  # A tensor as it is read, its bytes, and what it becomes.
  assert peak < size + 3 * LARGEST < 2 * size
