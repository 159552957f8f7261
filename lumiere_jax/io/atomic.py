"""Files and folders that are either whole or not there."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil
from typing import BinaryIO
import uuid

from lumiere_jax.typing import UserError


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
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
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
      f"{path}: cannot be written ({error.strerror or error}); "
      "choose a place with room that you may write to"
    ) from error
  finally:
    with contextlib.suppress(OSError):  # not to hide the error it follows
      if temporary.is_dir():
        shutil.rmtree(temporary)
      else:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a binary file that appears as `path` whole, or not at all.

  Raises:
    UserError: the place cannot be written.
  """
  with replacing(path) as temporary, temporary.open("xb") as file:
    yield file


def _sync(path: Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
