"""T5 encoder weights from T5X checkpoints, which use the same names.

  checkpoint                                        msgpack: the tree of leaves
  target.encoder.layers_0.attention.key.kernel/     a zarr array, and so on

or one msgpack file with the arrays inside. The decoder and the optimizer state
are ignored. Neither format can run code.
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import re
from typing import Any

from flax import serialization
import jax
import msgpack
import numpy as np
import tensorstore

from lumiere_jax.errors import UserError, foreign_errors
from lumiere_jax.models.importers.hf_checkpoint import check_tensors
from lumiere_jax.models.t5 import T5Config, abstract_params
from lumiere_jax.storage.safetensors import LazyArray, check_finite

INDEX = "checkpoint"

_MAP = re.compile(rb"[\x81-\x8f\xde\xdf]")
"""The first byte of a non-empty map in msgpack."""

_ENCODER = re.compile(
  r"(?:(?:optimizer/)?target/)?"
  r"(?:encoder/(?P<inner>.+)|(?P<outer>token_embedder/.+))"
)

_LEAF = re.compile(r".*/(kernel|scale|embedding|rel_embedding)")
_ARRAY, _CHUNKED = 1, "__msgpack_chunked_array__"  # As flax writes them.
_PLACEHOLDER = "PLACEHOLDER://"
_FLOATS = ("float32", "bfloat16", "float16", "float64")

_SIZES = {
  "vocab_size": ("token_embedder/embedding", 0),
  "d_model": ("token_embedder/embedding", 1),
  "num_heads": ("relpos_bias/rel_embedding", 0),
  "num_buckets": ("relpos_bias/rel_embedding", 1),
  "width": ("layers_0/attention/query/kernel", 1),
  "d_ff": ("layers_0/mlp/wi_0/kernel", 1),
}


def is_t5x(source: str | os.PathLike) -> bool:
  """Whether a path looks like the folder or msgpack file of T5X."""
  source = Path(source)
  file = source / INDEX if source.is_dir() else source
  if file.suffix == ".safetensors" or not file.is_file():
    return False
  with file.open("rb") as stream:
    return _MAP.match(stream.read(1)) is not None


def open_t5x(
  source: str | os.PathLike, dtype: str = "float32"
) -> tuple[T5Config, dict[str, LazyArray]]:
  """Opens the folder or msgpack file of a checkpoint; see `open_t5`.

  The config is inferred from the shapes of the arrays; `max_distance` is the
  same in every T5.
  """
  source = Path(source)
  file = source / INDEX if source.is_dir() else source
  arrays = _read_index(file)
  config = _infer(arrays, source, dtype)
  leaves = abstract_params(config)
  check_tensors(
    arrays,
    {path: leaf.shape for path, leaf in leaves.items()},
    str(source),
    "give the whole checkpoint of a T5 v1.1 encoder (d_model "
    f"{config.d_model}, {config.num_layers} layers)",
  )

  def cast(path: str, dtype: np.dtype) -> LazyArray:
    def make() -> np.ndarray:
      array = np.asarray(arrays[path])
      check_finite(array, path, f"{source}:")
      return array.astype(dtype, copy=False)

    return LazyArray(arrays[path].shape, dtype, make)

  return config, {p: cast(p, leaf.dtype) for p, leaf in leaves.items()}


# The msgpack file.


def _read_index(file: Path) -> dict[str, LazyArray]:
  """The encoder's arrays by path, in the file or in folders it names."""
  with _malformed(file):
    try:
      with file.open("rb") as stream, file.open("rb") as ahead:
        unpacker = msgpack.Unpacker(
          stream, ext_hook=_describe, strict_map_key=False, max_buffer_size=0
        )
        return {
          path: _lazy(value, file, path, span)
          for path, value, span in _walk(unpacker, ahead, "")
        }
    except OSError as error:
      raise UserError(
        f"{file}:",
        f"cannot be read ({error.strerror})",
        "give a T5X checkpoint",
      ) from error


def _malformed(file: Path) -> contextlib.AbstractContextManager[None]:
  wrong = lambda reason: UserError(
    f"{file}:",
    f"not the msgpack file of a T5X checkpoint, or incomplete ({reason})",
    "download it again",
  )
  return foreign_errors(wrong)


def _walk(
  unpacker: msgpack.Unpacker, ahead: Any, path: str
) -> Iterator[tuple[str, Any, slice]]:
  """Yields path, value and span of bytes of each encoder leaf.

  Arrays are replaced by their shape and dtype. Other leaves are skipped one by
  one, so that the optimizer state need not fit into memory.
  """
  start = unpacker.tell()
  ahead.seek(start)
  found = _ENCODER.fullmatch(path)
  if not _MAP.match(ahead.read(1)) or (found and _LEAF.fullmatch(path)):
    if found:
      value = unpacker.unpack()
      leaf = found["inner"] or found["outer"]
      yield leaf, value, slice(start, unpacker.tell())
    else:
      unpacker.skip()
    return
  for _ in range(unpacker.read_map_header()):
    key = unpacker.unpack()
    yield from _walk(unpacker, ahead, f"{path}/{key}" if path else str(key))


def _describe(code: int, data: bytes) -> Any:
  """Decodes an array as its shape and dtype."""
  if code != _ARRAY:
    return msgpack.ExtType(code, data)
  shape, name, values = msgpack.unpackb(data, raw=True)
  array = jax.ShapeDtypeStruct(shape, _float(str(name, "ascii")))
  if array.size * array.dtype.itemsize != len(values):
    raise ValueError("an array does not have the size of its shape")
  return array


def _float(name: str) -> np.dtype:
  if name not in _FLOATS:
    raise ValueError(f"an array is of type {name}")
  return np.dtype(name)


def _join(parts: dict[str, Any]) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an array stored in several chunks."""
  in_order = lambda values: [values[str(i)] for i in range(len(values))]
  chunks = in_order(parts["chunks"])
  array = jax.ShapeDtypeStruct(in_order(parts["shape"]), chunks[0].dtype)
  if array.size != sum(chunk.size for chunk in chunks):
    raise ValueError("a chunked array does not have the size of its shape")
  return array


def _lazy(value: Any, file: Path, path: str, span: slice) -> LazyArray:
  """The array of a leaf, in the file or in a folder that it names."""
  if isinstance(value, dict) and _CHUNKED in value:
    value = _join(value)
  if isinstance(value, jax.ShapeDtypeStruct):
    return LazyArray(value.shape, value.dtype, lambda: _restore(file, span))
  if isinstance(value, dict):  # A tensorstore specification.
    value = value.get("kvstore", value).get("path")
  if not isinstance(value, str):
    raise UserError(
      f"{file}:",
      f"{path} is neither an array nor the name of one",
      "give a checkpoint written by T5X",
    )
  return _open_zarr(file, value.removeprefix(_PLACEHOLDER))


def _restore(file: Path, span: slice) -> np.ndarray:
  with _malformed(file), file.open("rb") as stream:
    stream.seek(span.start)
    data = stream.read(span.stop - span.start)
    return serialization.msgpack_restore(data)


# The folders beside it.


def _open_zarr(index: Path, name: str) -> LazyArray:
  """The zarr array in a folder that the index names."""
  folder = index.parent.resolve()
  path = (folder / name).resolve()
  if path == folder or not path.is_relative_to(folder):
    raise UserError(
      f"{index}:",
      f"names {name!r}, which is outside its folder",
      "download the checkpoint from a trusted source",
    )
  # Uses only the name from the index: a whole specification could lead
  # anywhere, including the network. Missing chunks must not read as zeros.
  spec = {
    "driver": "zarr",
    "kvstore": {"driver": "file", "path": str(path)},
    "fill_missing_data_reads": False,
  }
  failed = lambda reason: UserError(
    f"{path}:",
    f"not a zarr array, or incomplete ({reason})",
    "download the folder again",
  )
  with foreign_errors(failed):
    store = tensorstore.open(spec, open=True, read=True).result()
    dtype = _float(store.dtype.name)

  def read() -> np.ndarray:
    with foreign_errors(failed):
      return store.read().result()

  return LazyArray(tuple(store.shape), dtype, read)


def _infer(arrays: dict[str, LazyArray], source: Path, dtype: str) -> T5Config:
  """The config of an encoder with these arrays."""
  if "layers_0/mlp/wi/kernel" in arrays:
    raise UserError(
      f"{source}:",
      "holds T5 1.0, without gated feed-forward layers",
      "give a T5 v1.1 encoder",
    )
  missing = sorted({p for p, _ in _SIZES.values() if p not in arrays})
  if missing:
    raise UserError(
      f"{source}:",
      f"holds no T5 encoder, as {', '.join(missing)} "
      f"{'is' if len(missing) == 1 else 'are'} missing",
      "give a T5X checkpoint of T5 v1.1",
    )
  flat = sorted({p for p, _ in _SIZES.values() if arrays[p].ndim != 2})
  if flat:
    raise UserError(
      f"{source}:",
      f"{', '.join(f'{p} {arrays[p].shape}' for p in flat)} must have two axes",
      "give a T5X checkpoint without scanned layers",
    )
  sizes = {name: arrays[p].shape[axis] for name, (p, axis) in _SIZES.items()}
  width = sizes.pop("width")
  layers = re.findall(r"^layers_(\d+)/", "\n".join(arrays), re.MULTILINE)
  return T5Config(
    **sizes,
    d_kv=width // max(sizes["num_heads"], 1),
    num_layers=max(map(int, layers)) + 1,
    dtype=dtype,
  )
