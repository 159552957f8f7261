"""Files and folders that are either whole or not there."""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import shutil
from typing import Any, BinaryIO
import uuid

from lumiere_jax.errors import UserError

_UNFINISHED = ".part"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a hidden name beside `path` to write to, then renames it to `path`.

  Makes the parent folders. What is written may be a file, or a folder, which
  takes the place of another folder. It reaches the disk before the rename, so
  that a crash, a full disk or a second writer never leaves half of it under
  the final name; if writing fails, `path` stays as it was.

  Raises:
    UserError: the place cannot be written.
  """
  path = Path(path)
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    _sync(temporary)
    if temporary.is_dir() and path.is_dir():
      shutil.rmtree(path)
    os.replace(temporary, path)
    _sync(path.parent)
  except OSError as error:
    raise UserError(
      f"{path}:",
      f"cannot be written ({error.strerror or error})",
      "choose a place with room that you may write to",
    ) from error
  finally:
    with contextlib.suppress(OSError):  # not to hide the error it follows
      _remove(temporary)


def remove_unfinished(path: str | os.PathLike) -> None:
  """Removes what killed writers left: `path` itself, or in it and below.

  Nobody may be writing there meanwhile.
  """
  path, pattern = Path(path), f".*{_UNFINISHED}"
  if path.match(pattern):
    _remove(path)
  elif path.is_dir():
    for left in list(path.rglob(pattern)):
      _remove(left)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a binary file that appears as `path` whole, or not at all.

  Raises:
    UserError: the place cannot be written.
  """
  with replacing(path) as temporary, temporary.open("xb") as file:
    yield file


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
  """Writes a JSON file whole, or not at all.

  Raises:
    UserError: the place cannot be written.
  """
  with writing(path) as file:
    file.write(json.dumps(content, indent=2).encode())


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
  """Makes a folder, and keeps others that ask for it out until the end.

  The lock goes with the process, however that ends. File systems without
  locks have none.

  Raises:
    UserError: it cannot be made or written to, or another process has it.
  """
  try:
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
      read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
      number = errno.EROFS if read_only else errno.EACCES
      raise OSError(number, os.strerror(number))
    handle = os.open(folder, os.O_RDONLY)
  except OSError as error:
    raise UserError(
      f"{folder}:",
      f"cannot be written ({error.strerror})",
      "choose a place that you may write to",
    ) from error
  try:
    with contextlib.suppress(OSError):  # none here
      _lock(folder, handle)
    yield
  finally:
    os.close(handle)


def _lock(folder: str | os.PathLike, handle: int) -> None:
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise UserError(
      f"{folder}:",
      "another process is writing to it",
      "wait until it has ended",
    ) from error


def require_space(folder: str | os.PathLike, needed: int) -> None:
  """Raises a UserError where a file system has fewer than `needed` bytes."""
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise UserError(
      f"{folder}:",
      f"{needed / 2**20:,.0f} MiB are needed there and "
      f"{free / 2**20:,.0f} MiB are free",
      "make room",
    )


def _remove(path: Path) -> None:
  """A file or a folder, if it is there."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
