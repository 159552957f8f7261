"""T5 encoder weights from and to the names and layout of Hugging Face files.

The decoder and output head that a full T5 file also holds are left out.
"""

from collections.abc import Collection, Mapping
import json
import os
import pathlib
from typing import Any

import numpy as np

from lumiere_jax.io import safetensors
from lumiere_jax.models.inflate import flatten, unflatten
from lumiere_jax.models.t5 import T5Config, abstract_params
from lumiere_jax.typing import FlatParams, Params, UserError, build

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
_ROOMS = {
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


def params_from_hf(
  tensors: Mapping[str, np.ndarray], config: T5Config
) -> Params:
  """Parameters of `T5Encoder(config)` from tensors under Hugging Face names.

  Matrices are transposed from (out, in) to (in, out); dtypes become the
  config's. Tensors outside the encoder (decoder, head) are ignored.

  Raises:
    UserError: tensors of the encoder are missing, have the wrong shape or do
      not belong to T5 v1.1 of this config (they are named).
  """
  tensors = {n: t for n, t in tensors.items() if _is_encoder(n)}
  alias = tensors.pop(_EMBEDDING[1], None)
  if alias is not None:
    tensors.setdefault(_EMBEDDING[0], alias)
  leaves = {_hf_name(p): (p, s) for p, s in abstract_params(config).items()}
  _refuse("missing", leaves.keys() - tensors.keys(), config)
  _refuse("unknown", tensors.keys() - leaves.keys(), config)
  shape = lambda p, s: s.shape[::-1] if _is_transposed(p) else s.shape
  _refuse(
    "of the wrong shape",
    [
      f"{name} {tensors[name].shape} instead of {shape(path, spec)}"
      for name, (path, spec) in leaves.items()
      if tensors[name].shape != shape(path, spec)
    ],
    config,
  )
  flat = {
    path: _turn(path, tensors[name]).astype(spec.dtype, copy=False)
    for name, (path, spec) in leaves.items()
  }
  return unflatten(flat)


def params_to_hf(params: Params) -> FlatParams:
  """The inverse of `params_from_hf`: numpy arrays under Hugging Face names."""
  flat = flatten(params)
  return {_hf_name(p): _turn(p, np.asarray(v)) for p, v in flat.items()}


def load_hf(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, Params]:
  """Reads an encoder as it is published: safetensors and config.json.

  Args:
    source: a folder with config.json and model.safetensors, or shards with
      model.safetensors.index.json; or one file with config.json beside it.
    dtype: "float32" or "bfloat16", what the weights are converted to.

  Raises:
    UserError: files are missing, broken, or not a T5 v1.1 encoder.
  """
  source = pathlib.Path(source)
  if not source.exists():
    raise UserError(f"{source}: no such file or folder; check the path")
  folder = source if source.is_dir() else source.parent
  config = _read_config(folder / "config.json", dtype)
  dtypes = {_hf_name(p): s.dtype for p, s in abstract_params(config).items()}
  tensors: FlatParams = {}
  for file in _weight_files(source):
    # Converted file by file: two whole copies are never in memory.
    for name, value in safetensors.load(file, _is_encoder).items():
      if name in tensors:
        raise UserError(
          f"{folder}: more than one file holds {name}; name the file to use"
        )
      tensors[name] = value.astype(dtypes.get(name, value.dtype), copy=False)
  return config, params_from_hf(tensors, config)


def _is_encoder(name: str) -> bool:
  return name in _EMBEDDING or name.startswith("encoder.")


def _hf_name(path: str) -> str:
  room, _, leaf = path.partition("/")
  if room.startswith("layers_"):
    return f"encoder.block.{room.removeprefix('layers_')}.{_LEAVES[leaf]}"
  return _ROOMS[room]


def _is_transposed(path: str) -> bool:
  return path.endswith(("/kernel", "/rel_embedding"))


def _turn(path: str, value: np.ndarray) -> np.ndarray:
  return value.T if _is_transposed(path) else value


def _refuse(fault: str, names: Collection[str], config: T5Config) -> None:
  """Raises if there are names, showing the first few."""
  if names:
    shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    raise UserError(
      f"T5 weights: {len(names)} encoder tensors are {fault} ({shown}); give "
      f"a T5 v1.1 encoder of d_model {config.d_model} with "
      f"{config.num_layers} layers"
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise UserError(
      f"{path}: no such file; it belongs beside the weights"
    ) from error
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}); fetch it again") from error
  if not isinstance(content, dict):
    raise UserError(f"{path}: not a JSON object; fetch it again")
  return content


def _read_config(path: pathlib.Path, dtype: str) -> T5Config:
  content = _read_json(path)
  kind = content.get("feed_forward_proj")
  if kind != "gated-gelu":
    raise UserError(
      f"{path}: feed_forward_proj is {kind!r}; give a T5 v1.1 encoder, which "
      'has "gated-gelu"'
    )
  values = {o: content[hf] for hf, o in _CONFIG_KEYS.items() if hf in content}
  return build(T5Config, {**values, "dtype": dtype}, str(path))


def _weight_files(source: pathlib.Path) -> list[pathlib.Path]:
  if source.is_file():
    return [source]
  index = source / "model.safetensors.index.json"
  if index.exists():
    shards = _read_json(index).get("weight_map", {})
    return sorted({source / f for n, f in shards.items() if _is_encoder(n)})
  files = sorted(source.glob("*.safetensors"))
  if not files:
    raise UserError(
      f"{source}: holds no .safetensors file; pickled weights (.bin) are not "
      "read, fetch or convert to safetensors"
    )
  return files
