"""Records (key -> bytes) in ArrayRecord shards NAME-00000.array_record, ...

Shards are written atomically. The last record of a shard lists the keys of the
others, so no separate index can get out of step. Of records with the same key,
the one in the last shard counts.
"""

from collections.abc import Iterable, Iterator, Mapping
import functools
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Any

from array_record.python.array_record_module import (
  ArrayRecordReader,
  ArrayRecordWriter,
)

from lumiere_jax.errors import UserError, foreign_errors
from lumiere_jax.storage.atomic import AnyPath
from lumiere_jax.storage.remote import Folder, atomic_upload

SHARD_BYTES = 2**26
_SUFFIX = ".array_record"

# Groups of one, so that reading a record reads no other. The content is already
# compressed (H.264) or incompressible (features).
_WRITER = "group_size:1,uncompressed"

_READER = "readahead_buffer_size:0,max_parallelism:0"
_OPEN_FILES = 128


class RecordWriter:
  """Adds shards to a folder.

  Records are buffered in memory until they fill a shard; a killed writer loses
  only these. Leaving the context, also by an exception, writes the last ones.
  """

  def __init__(
    self,
    folder: AnyPath,
    name: str,
    shard_bytes: int = SHARD_BYTES,
    *,
    by_keys: bool = False,
  ):
    """Writes nothing yet.

    Args:
      folder: of the shards; made with the first. With `by_keys` also a URL.
      name: prefix of their names; may start with a subfolder.
      shard_bytes: size from which a shard is written.
      by_keys: number shards by a hash of their keys, so that independent
        writers can share a folder and rewriting records replaces their shard.
        Otherwise shards are numbered consecutively.
    """
    self._folder, self._name, self._by_keys = folder, name, by_keys
    self._shard_bytes, self._buffered_bytes = shard_bytes, 0
    self._buffer: dict[str, bytes] = {}

  def __enter__(self) -> "RecordWriter":
    return self

  def __exit__(self, *error: Any) -> None:
    self.flush()

  def __setitem__(self, key: str, value: bytes) -> None:
    """Adds a record; writes a shard if it is full."""
    self._buffer[key] = value
    self._buffered_bytes += len(value)
    if self._buffered_bytes >= self._shard_bytes:
      self.flush()

  def flush(self) -> None:
    """Writes the buffered records as a shard."""
    records, self._buffer, self._buffered_bytes = self._buffer, {}, 0
    if not records:
      return
    if self._by_keys:
      digest = hashlib.sha256(json.dumps(sorted(records)).encode()).digest()
      # 19 or 20 digits, far above consecutive numbers.
      number = int.from_bytes(digest[:8], "big") | 2**63
    else:
      begins = Path(self._folder, self._name)
      there = (path.name for path in begins.parent.glob("*"))
      number = max(map(_number, shards(there, begins.name)), default=-1) + 1
    shard = f"{self._name}-{number:05d}{_SUFFIX}"
    _write(f"{self._folder}/{shard}", records)


class Records(Mapping[str, bytes]):
  """Reads the records of a folder by key; threads may share it."""

  def __init__(self, folder: Folder, name: str):
    """Reads the keys of all shards of a name; remote ones are copied."""
    self._reader = functools.lru_cache(_OPEN_FILES)(_open)
    self._places: dict[str, tuple[Path, int]] = {}
    for shard in shards(folder.names, name):
      path = folder.local(shard)
      keys = read_keys(path, self._reader(path))
      self._places |= {key: (path, k) for k, key in enumerate(keys)}

  def __getitem__(self, key: str) -> bytes:
    """The record of `key`; a damaged one is a UserError."""
    path, position = self._places[key]
    return _read(path, self._reader(path), position)

  def __contains__(self, key: object) -> bool:
    return key in self._places  # Mapping's own would read the record

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)


def read_keys(path: Path, reader: ArrayRecordReader | None = None) -> list[str]:
  """The keys of the records in one shard."""
  reader = reader or _open(path)
  count = reader.num_records() - 1
  wrong = lambda reason: UserError(
    f"{path}:",
    "does not end with the list of its keys",
    "move it away: this program did not write it",
  )
  with foreign_errors(wrong):
    keys = [str(key) for key in json.loads(_read(path, reader, count))["keys"]]
  if len(keys) != count:
    raise _damaged(path, f"{count} records, {len(keys)} keys")
  return keys


def shards(files: Iterable[str], name: str) -> list[str]:
  """The shards of one name among the files of a folder, by number."""
  pattern = re.compile(rf"{re.escape(name)}-\d{{5,}}{re.escape(_SUFFIX)}")
  return sorted(filter(pattern.fullmatch, files), key=_number)


def _number(shard: str) -> int:
  return int(shard.removesuffix(_SUFFIX).rpartition("-")[2])


def _write(address: str, records: Mapping[str, bytes]) -> None:
  index = json.dumps({"keys": list(records)}).encode()
  with atomic_upload(address) as temporary:
    try:
      writer = ArrayRecordWriter(os.fspath(temporary), _WRITER)
      for value in (*records.values(), index):
        writer.write(value)
      writer.close()
    except RuntimeError as error:  # ArrayRecord's error of file systems
      raise OSError(_first_words(str(error))) from error


def _open(path: Path) -> ArrayRecordReader:
  with foreign_errors(lambda reason: _damaged(path, reason)):
    reader = ArrayRecordReader(os.fspath(path), _READER)
    if not reader.ok() or not reader.num_records():
      _read(path, reader, 0)  # Knows why it could not be opened.
      raise _damaged(path, "no records")
    return reader


def _read(path: Path, reader: ArrayRecordReader, position: int) -> bytes:
  with foreign_errors(lambda reason: _damaged(path, _first_words(reason))):
    return reader.read([position])[0]


def _damaged(path: Path, details: str) -> UserError:
  return UserError(
    f"{path}:",
    f"damaged ({details})",
    "copy it again, or remove it and rerun what made it",
  )


def _first_words(reason: str) -> str:
  return reason.partition(";")[0]
