"""Files and folders to write to: on this machine, or wherever fsspec reaches.

A remote file, too, has its name only when it is whole: it is written here,
copied to a hidden name beside its own, and renamed.
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import posixpath
import tempfile
import uuid

import fsspec

from lumiere_jax.io.atomic import replacing
from lumiere_jax.io.folder import Folder
from lumiere_jax.io.remote import is_url
from lumiere_jax.typing import UserError


@contextlib.contextmanager
def placing(address: str | os.PathLike) -> Iterator[Path]:
  """Gives a name on this machine to write to, then puts that file in place.

  As `replacing`, but `address` may be a URL.

  Raises:
    UserError: the place cannot be written.
  """
  address = _here(address)
  if not is_url(address):
    with replacing(address) as temporary:
      yield temporary
    return
  with tempfile.TemporaryDirectory() as folder:
    temporary = Path(folder, posixpath.basename(address))
    yield temporary
    with _reaching(address):
      _upload(temporary, address)


def place_bytes(address: str | os.PathLike, data: bytes) -> bool:
  """Writes a file unless it is there with this content; says if it was not.

  Raises:
    UserError: the place cannot be written.
  """
  if _read(_here(address)) == data:
    return False
  with placing(address) as temporary:
    temporary.write_bytes(data)
  return True


def require_writable(folder: str | os.PathLike) -> None:
  """Makes a folder, and writes a file into it that is removed again.

  Raises:
    UserError: that cannot be done.
  """
  folder = _here(folder)
  probe = f"{folder}/.probe-{uuid.uuid4().hex}"
  if not is_url(folder):
    place_bytes(probe, b"")
  else:
    with tempfile.NamedTemporaryFile() as empty, _reaching(folder):
      _upload(Path(empty.name), probe)
  remove(probe)


def remove(address: str | os.PathLike) -> None:
  """Removes a file, if it is there and that is allowed."""
  with contextlib.suppress(Exception):  # file systems raise what they like
    system, path = fsspec.core.url_to_fs(_here(address))
    system.rm_file(path)


def names_in(folder: str | os.PathLike) -> list[str]:
  """As `Folder.names`; none where there is no such folder yet.

  Raises:
    UserError: it cannot be read.
  """
  folder = _here(folder)
  if not is_url(folder):
    return Folder(folder).names if os.path.isdir(folder) else []
  with _reaching(folder):
    system, path = fsspec.core.url_to_fs(folder)
    system.invalidate_cache()  # others write there
    if not system.find(path):
      return []
  return Folder(folder).names


@contextlib.contextmanager
def borrowing(
  folder: str | os.PathLike, cache: str | os.PathLike = ""
) -> Iterator[Folder]:
  """A folder whose remote files are kept here no longer than it is in use.

  Args:
    folder: the folder, or its URL.
    cache: where copies are kept for good; '' keeps none.
  """
  if cache:
    yield Folder(folder, cache)
    return
  with tempfile.TemporaryDirectory() as copies:
    yield Folder(folder, copies)


def _here(address: str | os.PathLike) -> str:
  return os.fspath(address).removeprefix("file://").rstrip("/")


def _read(address: str) -> bytes | None:
  """What is in a file; None: nothing that can be read."""
  if not is_url(address):
    path = Path(address)
    return path.read_bytes() if path.is_file() else None
  with _reaching(address):
    system, path = fsspec.core.url_to_fs(address)
    system.invalidate_cache()
    return system.cat_file(path) if system.exists(path) else None


def _upload(source: Path, address: str) -> None:
  system, path = fsspec.core.url_to_fs(address)
  parent, name = posixpath.split(path)
  hidden = f"{parent}/.{name}.{uuid.uuid4().hex}.part"
  # Buckets have no folders; some of their systems refuse to make one.
  with contextlib.suppress(Exception):
    system.makedirs(parent, exist_ok=True)
  try:
    system.put_file(os.fspath(source), hidden)
    system.mv(hidden, path)
  except Exception:
    with contextlib.suppress(Exception):  # not to hide the error it follows
      system.rm_file(hidden)
    raise


@contextlib.contextmanager
def _reaching(address: str) -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # file systems raise what they like
    words = " ".join(str(error).split()) or type(error).__name__
    raise UserError(
      f"{address}: cannot be read or written ({words}); check URL, credentials "
      "and that its package is installed"
    ) from error
