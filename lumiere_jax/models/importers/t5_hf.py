"""T5 encoder weights from Hugging Face files.

The decoder and output head of a full T5 are ignored.
"""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np

from lumiere_jax.errors import UserError, build
from lumiere_jax.models.importers.hf_checkpoint import (
  check_tensors,
  open_weights,
  read_json,
)
from lumiere_jax.models.t5 import T5Config, abstract_params
from lumiere_jax.storage.safetensors import LazyArray

_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")

_LEAVES = {
  "attention/query/kernel": "layer.0.SelfAttention.q.weight",
  "attention/key/kernel": "layer.0.SelfAttention.k.weight",
  "attention/value/kernel": "layer.0.SelfAttention.v.weight",
  "attention/out/kernel": "layer.0.SelfAttention.o.weight",
  "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
  "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
  "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
  "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
  "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
}

_TOP_LEVEL = {
  "token_embedder": _EMBEDDING[0],
  "relpos_bias": (
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  ),
  "encoder_norm": "encoder.final_layer_norm.weight",
}

_CONFIG_KEYS = {
  "vocab_size": "vocab_size",
  "d_model": "d_model",
  "d_ff": "d_ff",
  "num_heads": "num_heads",
  "d_kv": "d_kv",
  "num_layers": "num_layers",
  "relative_attention_num_buckets": "num_buckets",
  "relative_attention_max_distance": "max_distance",
}


def open_hf(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, dict[str, LazyArray]]:
  """Opens a folder or file of safetensors with config.json; see `open_t5`.

  The files are model.safetensors, or shards with model.safetensors.index.json.
  """
  source = Path(source)
  if not source.exists():
    raise UserError(f"{source}:", "no such file or folder", "check the path")
  folder = source if source.is_dir() else source.parent
  config = _read_config(folder / "config.json", dtype)
  tensors = open_weights(source, "model", keep=_is_encoder)
  return config, lazy_leaves(tensors, config, str(source))


def lazy_leaves(
  tensors: Mapping[str, Any], config: T5Config, source: str
) -> dict[str, LazyArray]:
  """The leaves of `T5Encoder(config)`, read from `tensors` on access.

  Matrices are transposed from (out, in) to (in, out) and cast to the dtypes of
  the config. Tensors outside the encoder (decoder, head) are ignored.
  """
  kept = {name: x for name, x in tensors.items() if _is_encoder(name)}
  alias = kept.pop(_EMBEDDING[1], None)
  if alias is not None:
    kept.setdefault(_EMBEDDING[0], alias)
  leaves = abstract_params(config)
  expected = {
    hf_name(path): leaf.shape[::-1] if is_transposed(path) else leaf.shape
    for path, leaf in leaves.items()
  }
  check_tensors(
    kept,
    expected,
    source,
    "give the T5 v1.1 encoder that its config describes (d_model "
    f"{config.d_model}, {config.num_layers} layers)",
  )

  def leaf(path: str) -> LazyArray:
    tensor, spec = kept[hf_name(path)], leaves[path]

    def make() -> np.ndarray:
      value = np.asarray(tensor).astype(spec.dtype, copy=False)
      return value.T if is_transposed(path) else value

    return LazyArray(spec.shape, spec.dtype, make)

  return {path: leaf(path) for path in leaves}


def hf_name(path: str) -> str:
  """The tensor of a leaf."""
  module, _, leaf = path.partition("/")
  if module.startswith("layers_"):
    return f"encoder.block.{module.removeprefix('layers_')}.{_LEAVES[leaf]}"
  return _TOP_LEVEL[module]


def is_transposed(path: str) -> bool:
  """Whether the tensor of a leaf is its transpose."""
  return path.endswith(("/kernel", "/rel_embedding"))


def _is_encoder(name: str) -> bool:
  return name in _EMBEDDING or name.startswith("encoder.")


def _read_config(path: Path, dtype: str) -> T5Config:
  content = read_json(path)
  kind = content.get("feed_forward_proj")
  if kind != "gated-gelu":
    raise UserError(
      f"{path}:",
      f"feed_forward_proj is {kind!r}",
      "give a T5 v1.1 encoder, which has 'gated-gelu'",
    )
  values = {o: content[hf] for hf, o in _CONFIG_KEYS.items() if hf in content}
  return build(T5Config, {**values, "dtype": dtype}, str(path))
