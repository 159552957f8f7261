"""The cases of the T5 references, for the script and the tests."""

import hashlib
import json
from pathlib import Path
from typing import Any

from flax import serialization
import jax
import numpy as np

from lumiere_jax.models.importers.t5_hf import (
  hf_name,
  is_transposed,
  lazy_leaves,
)
from lumiere_jax.models.params import flatten, unflatten
from lumiere_jax.models.t5 import T5Config
from lumiere_jax.models.text_encoder import open_t5
from lumiere_jax.storage import safetensors
from lumiere_jax.typing import FlatParams, Params
from tests.references.drawn import draw

FOLDER = Path(__file__).parent / "t5"
SPIECE = (
  Path(__file__).parents[2] / "../shared/assets/tokenizers/t5/spiece.model"
)
"""T5's own tokenizer, if available."""

LENGTHS = (128, 77, 20, 1)
SHAPES = {
  "odd": {"d_model": 24, "d_ff": 40, "num_heads": 3, "d_kv": 16},
  "few_buckets": {
    "d_model": 32,
    "d_ff": 80,
    "num_heads": 4,
    "d_kv": 8,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 60,
  },
  "one_head": {"d_model": 16, "d_ff": 16, "num_heads": 1, "d_kv": 64},
}
CONFIGS = {
  name: {
    "vocab_size": 100,
    "num_layers": 3,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    **shape,
  }
  for name, shape in SHAPES.items()
}
"""Contents of config.json by case."""
SEED = 0
STRINGS = 10_000
TEXTS = (
  *("", " ", "Hello world", "a red circle moves left.", "don't"),
  *("café naïve", "cafe\u0301", "Ünïcödé ﬁsh  with   spaces", "世界", "🙂👍🏽"),
  *("\ttabs\nand lines\r\n", "\u3000wide\u3000", "ℌ½™", "12345678901234567890"),
)
"""Texts whose ids are stored; of others, only a hash."""


def weights(
  config: dict[str, Any], shapes: dict[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
  """Random tensors of an encoder, with T5's scale of queries.

  T5 does not divide logits by sqrt(d_kv): with unscaled queries, large logits
  would amplify rounding errors.
  """
  drawn = draw(shapes, seed)
  for name in drawn:
    if name.endswith("SelfAttention.q.weight"):
      drawn[name] *= np.float32(config["d_kv"] ** -0.5)
  return drawn


def tokens(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids (4, 128) int32 of texts of `LENGTHS`, padded with 0, and their mask."""
  rng = np.random.default_rng(SEED)
  length = max(LENGTHS)
  mask = np.arange(length) < np.array(LENGTHS)[:, None]
  ids = rng.integers(2, vocab_size, mask.shape)
  return np.where(mask, ids, 0).astype(np.int32), mask


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
  """The largest distance of two features, relative to the second's norm."""
  distance = np.linalg.norm(np.float64(ours) - np.float64(theirs), axis=-1)
  return float((distance / np.linalg.norm(theirs, axis=-1)).max())


def digest(values: list) -> str:
  """SHA-256 (hex) of lists of strings or numbers."""
  return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def params_to_hf(params: Params) -> FlatParams:
  """The tensors of an encoder, under Hugging Face names."""
  return {
    hf_name(path): np.asarray(x).T if is_transposed(path) else np.asarray(x)
    for path, x in flatten(params).items()
  }


def params_from_hf(tensors: FlatParams, config: T5Config) -> Params:
  """The inverse of `params_to_hf`."""
  leaves = lazy_leaves(tensors, config, "T5 weights")
  return unflatten({k: np.asarray(x) for k, x in leaves.items()})


def load_t5(source, dtype: str = "float32") -> tuple[T5Config, Params]:
  """Config and parameters of weight files."""
  config, leaves = open_t5(source, dtype)
  return config, unflatten({k: np.asarray(x) for k, x in leaves.items()})


def hf_config(config: T5Config) -> dict[str, Any]:
  """The config.json of an encoder."""
  content = vars(config) | {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": config.num_buckets,
    "relative_attention_max_distance": config.max_distance,
  }
  ours = ("num_buckets", "max_distance", "dtype")
  return {k: v for k, v in content.items() if k not in ours}


def write_hf(folder: Path, config: T5Config, tensors: FlatParams, **changes):
  """Writes an encoder as Hugging Face folders hold it; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  content = {**hf_config(config), "model_type": "t5", **changes}
  (folder / "config.json").write_text(json.dumps(content))
  if tensors:
    safetensors.save(folder / "model.safetensors", tensors, {"format": "pt"})
  return folder


def t5x_name(path: str) -> str:
  """The place of a leaf in the tree that T5X saves."""
  return path if path.startswith("token_embedder") else f"encoder/{path}"


def write_t5x(file: Path, params: Params) -> Path:
  """Writes an encoder as the msgpack file of a T5X checkpoint."""
  flat = {f"target/{t5x_name(k)}": v for k, v in flatten(params).items()}
  tree = jax.tree.map(np.asarray, unflatten(flat))
  file.write_bytes(serialization.msgpack_serialize(tree))
  return file
