"""Atomic writes of files and folders, locks and free space."""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any, BinaryIO
import uuid

from lumiere_jax.errors import UserError

AnyPath = str | os.PathLike
_UNFINISHED = ".part"
_OURS = re.compile(r"\..*\.[0-9a-f]{32}\.part")  # names made by `replacing`
_MAX_STEM = 40  # characters of a name in it, so that long names fit too
_PROBE_BYTES = 2**16


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
  """Yields a hidden name beside `path` to write to, then renames it to `path`.

  Makes the parent folders. What is written may be a file, or a folder, which
  replaces an old folder. It reaches the disk before the rename, so a crash, a
  full disk or a second writer never leaves a partial file under the final name.
  If writing fails, `path` stays as it was.
  """
  path = Path(path)
  stem = path.name[:_MAX_STEM]
  temporary = path.with_name(f".{stem}.{uuid.uuid4().hex}{_UNFINISHED}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    _sync(temporary)
    if temporary.is_dir() and path.is_dir():
      shutil.rmtree(path)
    os.replace(temporary, path)
    _sync(path.parent)
  except OSError as error:
    raise _unwritable(path, error) from error
  finally:
    with contextlib.suppress(OSError):  # must not hide the first error
      _remove(temporary)


def check_writable(*paths: AnyPath, folder: bool = False) -> None:
  """Raises a UserError where `replacing` could not write to one of the paths.

  A little is written to the closest folder that exists, and removed again. With
  `folder`, the paths are folders for files of any name.
  """
  probed = set()
  for path in map(Path, paths):
    try:
      whole = path.absolute()
      above = (whole, *whole.parents) if folder else whole.parents
      place = next(p for p in above if os.path.lexists(p))
      if place not in probed:
        with tempfile.TemporaryFile(dir=place) as probe:
          probe.write(bytes(_PROBE_BYTES))
        probed.add(place)
      longest = max(len(os.fsencode(part)) for part in path.parts)
      if longest > os.pathconf(place, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
      raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
  return UserError(
    f"{path}:",
    f"cannot be written ({error.strerror or error})",
    "choose a writable place with free space",
  )


def remove_unfinished(path: AnyPath) -> None:
  """Removes what killed writers left at `path` or below it.

  Nothing else may write there at the same time.
  """
  path = Path(path)
  below = path.rglob(f".*{_UNFINISHED}") if path.is_dir() else ()
  for unfinished in [path, *below]:
    if _OURS.fullmatch(unfinished.name):
      _remove(unfinished)


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[BinaryIO]:
  """Opens a binary file that appears as `path` once it is complete."""
  with replacing(path) as temporary, temporary.open("xb") as file:
    yield file


def write_json(path: AnyPath, content: Mapping[str, Any]) -> None:
  """Writes a JSON file atomically."""
  with writing(path) as file:
    file.write(json.dumps(content, indent=2).encode())


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
  """Makes a folder and locks it against other callers of this function.

  The lock ends with the process, however that ends. On file systems without
  locks nothing is locked.
  """
  try:
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
      read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
      number = errno.EROFS if read_only else errno.EACCES
      raise OSError(number, os.strerror(number))
    handle = os.open(folder, os.O_RDONLY)
  except OSError as error:
    problem = f"cannot be written ({error.strerror})"
    fix = "choose a writable place"
    raise UserError(f"{folder}:", problem, fix) from error
  try:
    with contextlib.suppress(OSError):  # a file system without locks
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise UserError(
          f"{folder}:",
          "another process is writing to it",
          "wait until it has ended",
        ) from error
    yield
  finally:
    os.close(handle)


def require_space(folder: AnyPath, needed: int) -> None:
  """Raises a UserError if fewer than `needed` bytes are free."""
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise UserError(
      f"{folder}:",
      f"{needed / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} MiB free",
      "make room",
    )


def _remove(path: Path) -> None:
  """Removes a file or folder, if it exists."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
  """Waits until a file, or a folder's list of names, is on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
