"""Shards of records, key -> bytes, in ArrayRecord files NAME-00000, ...

A shard appears whole or not at all, and its last record lists the keys of the
others: what is there can be told without a second file to keep in step. Of
records with the same key, the one in the last shard counts.
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

from lumiere_jax.errors import UserError
from lumiere_jax.storage.remote import Folder, atomic_upload

SHARD_BYTES = 2**26


_SUFFIX = ".array_record"


# Groups of one: reading a record reads no other. What is kept is compressed
# already (H.264) or cannot be (features).
_WRITER = "group_size:1,uncompressed"


_READER = "readahead_buffer_size:0,max_parallelism:0"


_OPEN_FILES = 128


class RecordWriter:
  """Adds shards to a folder.

  Records are kept in memory until they fill a shard, so a writer that is
  killed loses these and no others. As a context it writes the last ones when
  it is left, by an exception too.
  """

  def __init__(
    self,
    folder,
    name: str,
    shard_bytes: int = SHARD_BYTES,
    *,
    by_keys: bool = False,
  ):
    """Sets up a writer; nothing is written yet.

    Args:
      folder: of the shards; made when the first is written.
      name: what their names begin with; may lead into a folder below.
      shard_bytes: a shard is written when it holds as many.
      by_keys: number shards by a hash of their keys: writers need not know of
        one another, what is written again lies there once, and the folder may
        be a URL. Otherwise on from the last one there.
    """
    self._folder, self._name, self._by_keys = folder, name, by_keys
    self._shard_bytes, self._held_bytes = shard_bytes, 0
    self._held: dict[str, bytes] = {}

  def __enter__(self) -> "RecordWriter":
    return self

  def __exit__(self, *error: Any) -> None:
    self.flush()

  def __setitem__(self, key: str, value: bytes) -> None:
    """Adds a record.

    Raises:
      UserError: a shard is full and cannot be written.
    """
    self._held[key] = value
    self._held_bytes += len(value)
    if self._held_bytes >= self._shard_bytes:
      self.flush()

  def flush(self) -> None:
    """Writes a shard of what there is.

    Raises:
      UserError: the place cannot be written.
    """
    held, self._held, self._held_bytes = self._held, {}, 0
    if not held:
      return
    if self._by_keys:
      shard = _shard(self._name, _number_by_keys(held))
      _write(f"{self._folder}/{shard}", held)
    else:
      _write(_next_path(Path(self._folder, self._name)), held)


class Records(Mapping[str, bytes]):
  """Reads the records of a folder by key; threads may share it."""

  def __init__(self, folder: Folder, name: str):
    """Reads the keys of all shards; a folder without any is empty.

    Args:
      folder: of the shards; remote ones are copied to this machine.
      name: what their names begin with; may lead into a folder below.

    Raises:
      UserError: the folder does not exist, or a shard is damaged.
    """
    self._reader = functools.lru_cache(_OPEN_FILES)(_open)
    self._places: dict[str, tuple[Path, int]] = {}
    for shard in shards(folder.names, name):
      path = folder.local(shard)
      for position, key in enumerate(_keys(path, self._reader(path))):
        self._places[key] = path, position

  def __getitem__(self, key: str) -> bytes:
    """The record of `key`.

    Raises:
      KeyError: there is none.
      UserError: it is damaged.
    """
    path, position = self._places[key]
    return _read(path, self._reader(path), position)

  def __contains__(self, key: object) -> bool:
    return key in self._places  # Mapping's own would read the record

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)


def read_keys(path: Path) -> list[str]:
  """The keys of the records in one shard.

  Raises:
    UserError: it is damaged.
  """
  return _keys(path, _open(path))


def _keys(path: Path, reader: ArrayRecordReader) -> list[str]:
  count = reader.num_records() - 1
  try:
    keys = json.loads(_read(path, reader, count))["keys"]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path}:",
      "does not end with the list of its keys",
      "it was not written by this program, move it away",
    ) from error
  if len(keys) != count:
    raise _damaged(path, f"{count} records, {len(keys)} keys")
  return keys


def shards(files: Iterable[str], name: str) -> list[str]:
  """Those of one name among the files of a folder, by number."""
  pattern = re.compile(rf"{re.escape(name)}-\d{{5,}}{re.escape(_SUFFIX)}")
  return sorted(filter(pattern.fullmatch, files), key=_number)


def _number(shard: str) -> int:
  return int(shard.removesuffix(_SUFFIX).rpartition("-")[2])


def _shard(name: str, number: int) -> str:
  return f"{name}-{number:05d}{_SUFFIX}"


def _next_path(begins: Path) -> Path:
  there = (path.name for path in begins.parent.glob("*"))
  numbers = [_number(shard) for shard in shards(there, begins.name)]
  return begins.with_name(_shard(begins.name, max(numbers, default=-1) + 1))


def _number_by_keys(keys: Iterable[str]) -> int:
  """19 or 20 digits: far above what is counted, and as good as unique."""
  digest = hashlib.sha256(json.dumps(sorted(keys)).encode()).digest()
  return int.from_bytes(digest[:8], "big") | 2**63


def _write(address: str | os.PathLike, records: Mapping[str, bytes]) -> None:
  index = json.dumps({"keys": list(records)}).encode()
  with atomic_upload(address) as temporary:
    try:
      writer = ArrayRecordWriter(os.fspath(temporary), _WRITER)
      for value in (*records.values(), index):
        writer.write(value)
      writer.close()
    except RuntimeError as error:  # what it raises where files fail
      raise OSError(_first_words(error)) from error


def _open(path: Path) -> ArrayRecordReader:
  reader = ArrayRecordReader(os.fspath(path), _READER)
  if not reader.ok() or not reader.num_records():
    raise _damaged(path, _complaint(reader))
  return reader


def _complaint(reader: ArrayRecordReader) -> str:
  """What a reader that could not be opened has to say."""
  try:
    reader.read([0])
  except (RuntimeError, IndexError) as error:
    return _first_words(error)
  return "no records"


def _read(path: Path, reader: ArrayRecordReader, position: int) -> bytes:
  try:
    return reader.read([position])[0]
  except RuntimeError as error:
    raise _damaged(path, _first_words(error)) from error


def _damaged(path: Path, details: str) -> UserError:
  return UserError(
    f"{path}:",
    f"damaged ({details})",
    "copy it again, or remove it and run again what made it",
  )


def _first_words(error: Exception) -> str:
  return str(error).partition(";")[0]
