"""Safetensors files, read eagerly or as lazy arrays.

Converting a model of lazy arrays (renaming, transposing, merging, saving) needs
the memory of one array at a time.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import json
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import deserialize, safe_open

from lumiere_jax.errors import UserError, foreign_errors
from lumiere_jax.storage.atomic import AnyPath, writing
from lumiere_jax.typing import FlatParams


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """An array of known shape and dtype that `make` computes on each access."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Number of elements."""
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return len(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes of the computed array."""
    return self.size * self.dtype.itemsize

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    """Computes the array, for numpy."""
    del copy  # it is always new
    return np.asarray(self.make(), dtype)


_DTYPE_OF_CODE: dict[str, np.dtype] = {
  "BOOL": np.dtype(bool),
  **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
  **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
  **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
  "BF16": np.dtype(ml_dtypes.bfloat16),
}

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_CODES = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}


def save(
  path: AnyPath,
  flat: Mapping[str, Any],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes named arrays atomically; the same input gives the same bytes.

  The arrays may be numpy's, jax's or lazy ones; they are fetched one at a time.
  The `metadata` are strings for the file's header.

  Raises:
    ValueError: the format lacks the dtype, or a name is "__metadata__".
  """
  with writing(path) as file:
    for part in _parts(flat, metadata):
      file.write(part)


def dumps(flat: Mapping[str, Any]) -> bytes:
  """The bytes of the file that `save` writes."""
  return b"".join(_parts(flat))


def _parts(
  flat: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
  """The header, then the values of each array."""
  if "__metadata__" in flat:
    raise ValueError('a tensor cannot be named "__metadata__"')
  # Widest first, as the format requires, so that every tensor is aligned.
  names = sorted(flat, key=lambda n: (-flat[n].dtype.itemsize, n))
  header: dict[str, Any] = {}
  if metadata:
    header["__metadata__"] = dict(sorted(metadata.items()))
  end = 0
  for name in names:
    start, end = end, end + flat[name].size * flat[name].dtype.itemsize
    header[name] = {**_spec(flat[name]), "data_offsets": [start, end]}
  head = json.dumps(header, separators=(",", ":")).encode()
  head += b" " * (-len(head) % 8)
  yield len(head).to_bytes(8, "little") + head
  yield from (_bytes(flat[name]) for name in names)


def check_finite(array: np.ndarray, name: str, field: str) -> np.ndarray:
  """The array; a UserError about `field` if a value is NaN or infinite.

  It compares bits, in a tenth of the time that reading takes: as integers, NaN
  and infinity are the largest values, with either sign.
  """
  if array.dtype.name not in _FLOATS or not array.size:
    return array
  bits = array.reshape(-1).view(f"u{array.itemsize}")
  top = np.array([np.inf, -np.inf], array.dtype).view(bits.dtype)
  if bits.view(f"i{array.itemsize}").max() >= top[0] or bits.max() >= top[1]:
    raise UserError(
      field,
      f"{name} has values that are NaN or infinite",
      "give weights from before training or conversion failed",
    )
  return array


def load(
  path: AnyPath,
  keep: Callable[[str], bool] = lambda name: True,
  *,
  finite: bool = False,
) -> FlatParams:
  """Reads the arrays whose names pass `keep` as numpy arrays.

  With `finite`, a NaN or an infinite value is a UserError.
  """
  check = lambda x, n: check_finite(x, n, f"{path}:") if finite else x
  with _opened(path) as file:
    names = [n for n in sorted(file.keys()) if keep(n)]
    return {n: check(file.get_tensor(n), n) for n in names}


def load_lazily(path: AnyPath, *, finite: bool = False) -> dict[str, LazyArray]:
  """The arrays of a file, each read on access, if the file is still there.

  With `finite`, a NaN or an infinite value is a UserError then.
  """
  with _opened(path) as file:
    return {
      n: _lazy(path, n, file.get_slice(n), finite) for n in sorted(file.keys())
    }


def _lazy(path: AnyPath, name: str, part: Any, finite: bool) -> LazyArray:
  code = part.get_dtype()
  if code not in _DTYPE_OF_CODE:
    raise UserError(
      f"{path}:",
      f"{name} has the dtype {code}",
      f"supported are {', '.join(_DTYPE_OF_CODE)}",
    )

  def read() -> np.ndarray:
    # Pages of a memory-mapped file stay in memory while it is open.
    with _opened(path) as file:
      array = file.get_tensor(name)
    return check_finite(array, name, f"{path}:") if finite else array

  return LazyArray(tuple(part.get_shape()), _DTYPE_OF_CODE[code], read)


def loads(data: bytes, name: str) -> FlatParams:
  """Reads the arrays of a file in memory, which errors call `name`."""
  wrong = lambda reason: UserError(
    f"{name}:", f"not safetensors, or only a part ({reason})", "make it again"
  )
  with foreign_errors(wrong):
    return {
      key: np.frombuffer(array["data"], _DTYPE_OF_CODE[array["dtype"]]).reshape(
        array["shape"]
      )
      for key, array in deserialize(data)
    }


def load_metadata(path: AnyPath) -> dict[str, str]:
  """Reads the strings in a file's header; {} if there are none."""
  with _opened(path) as file:
    return file.metadata() or {}


def content_hash(flat: Mapping[str, Any]) -> str:
  """SHA-256 (hex) over names, shapes, dtypes and values, in order of name."""
  digest = hashlib.sha256()
  for name in sorted(flat):
    # The JSON object is self-delimiting and fixes the number of bytes after it,
    # so different dicts cannot feed the same bytes.
    digest.update(json.dumps({name: _spec(flat[name])}).encode())
    digest.update(_bytes(flat[name]))
  return digest.hexdigest()


def _spec(array: Any) -> dict[str, Any]:
  dtype = np.dtype(array.dtype).newbyteorder("=")
  if dtype not in _CODES:
    raise ValueError(f"safetensors files cannot hold {dtype}")
  return {"dtype": _CODES[dtype], "shape": list(array.shape)}


def _bytes(array: Any) -> memoryview:
  """The values in C order and little endian, without a copy if possible."""
  array = np.ascontiguousarray(array)
  if array.dtype.byteorder == ">":
    array = array.astype(array.dtype.newbyteorder("<"))
  return memoryview(array.reshape(-1).view(np.uint8))


@contextlib.contextmanager
def _opened(path: AnyPath) -> Iterator[Any]:
  wrong = lambda reason: UserError(
    f"{path}:",
    f"not a safetensors file, or only a part of one ({reason})",
    "copy or download it again",
  )
  with foreign_errors(wrong):
    try:
      with safe_open(path, framework="np") as file:
        yield file
    except FileNotFoundError as error:
      raise UserError(f"{path}:", "no such file", "check the path") from error
    except OSError as error:
      problem, fix = f"cannot be read ({error})", "give a safetensors file"
      raise UserError(f"{path}:", problem, fix) from error
