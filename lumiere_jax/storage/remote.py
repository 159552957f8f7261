"""Files and folders that may be remote: fetched into a cache, uploaded whole.

Addresses are paths or URLs that fsspec opens.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import os
from pathlib import Path
import posixpath
import re
import sys
import tempfile
import uuid

import fsspec
from fsspec.registry import known_implementations

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage.atomic import replacing, writing
from lumiere_jax.storage.files import user_cache

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


_ENDING = re.compile(r"\.\w{1,8}")


_BLOCK = 1 << 24  # Bytes read at a time.


# What tells states of a file apart where `ukey` does not: over HTTP.
_STATE = ("size", "mtime", "ETag")


# Packages whose errors are no OSError: known only once they are imported.
_ERRORS = {
  "aiohttp": "ClientError",
  "botocore.exceptions": "BotoCoreError",
  "gcsfs.retry": "HttpError",
  "google.auth.exceptions": "GoogleAuthError",
}


def is_url(name: str) -> bool:
  """Whether a name is a URL, such as gs://bucket/x.mp4."""
  return bool(_URL.match(name))


def default_cache() -> Path:
  """Where copies are kept unless a folder is given: in the user's cache."""
  return user_cache("remote")


def fetch(url: str, cache: Path) -> Path:
  """Copies a remote file, unless the same state of it was copied before.

  Args:
    url: of the file.
    cache: the folder of copies. They are named by a hash of the URL and of
      what tells states of the file apart: size, time, checksum, as far as its
      file system says.

  Returns:
    The copy, which ends as the URL does.

  Raises:
    VideoError: the file is missing or cannot be copied.
    UserError: no such file system, or the cache cannot be written.
  """
  system, path = _open(url)
  with _reading(url):
    info = system.info(path)
    if info["type"] == "directory":
      raise VideoError(url, "not a file: give a video file")
    state = url, system.ukey(path), *map(info.get, _STATE)
  digest = hashlib.sha256(repr(state).encode()).hexdigest()
  ending = posixpath.splitext(url.partition("?")[0])[1]
  ending = ending if _ENDING.fullmatch(ending) else ""
  copy = cache / digest[:2] / f"{digest}{ending}"
  if not copy.exists():
    with writing(copy) as file:
      _copy(system, path, url, info.get("size"), file)
  return copy


def _copy(system, path: str, url: str, size: int | None, file) -> None:
  # Errors of the remote side are told from those of the disk written to.
  with _reading(url):
    source = system.open(path, "rb")
  with source:
    while True:
      with _reading(url):
        block = source.read(_BLOCK)
      if not block:
        break
      file.write(block)
  if size is not None and file.tell() != size:
    raise VideoError(
      url, f"cut short: {file.tell()} of {size} bytes came; try again"
    )


def list_folder(url: str) -> list[str]:
  """Names of all files in a remote folder and below, relative to it.

  Raises:
    UserError: it is empty, missing, or cannot be listed.
  """
  system, path = _open(url)
  with _reading(url):
    found = system.find(path)
  inside = path.rstrip("/") + "/"
  names = [f.removeprefix(inside) for f in found if f.startswith(inside)]
  if not names:
    raise UserError(f"{url}:", "no files", "give the URL of a folder of videos")
  return names


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """The file system of a URL, and what it calls the file."""
  protocol = url.partition("://")[0].lower()
  try:
    with _reading(url):
      return fsspec.core.url_to_fs(url)
  except ImportError as error:
    known = known_implementations.get(protocol, {"class": protocol})
    module = known["class"].partition(".")[0]
    extra = "http" if protocol == "https" else protocol
    package = f"'fsspec[{extra}]'" if module == "fsspec" else module
    raise UserError(
      f"{url}:",
      f"{protocol} needs a package that is not installed ({_one_line(error)})",
      f"pip install {package}",
    ) from error


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
  try:
    yield
  except FileNotFoundError as error:
    # Some file systems say this of a server that does not answer, too.
    reason = "missing: no such remote file, or no answer from its server"
    raise VideoError(url, reason) from error
  except _errors() as error:
    raise VideoError(
      url, f"cannot be reached: {_one_line(error)}; check URL and credentials"
    ) from error


def _errors() -> tuple[type[Exception], ...]:
  loaded = [(sys.modules.get(m), name) for m, name in _ERRORS.items()]
  known = [getattr(module, name) for module, name in loaded if module]
  return (OSError, ValueError, *known)


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


class Folder:
  """Files by name: relative to the folder, or URLs of their own.

  Attributes:
    root: the folder, or its URL; file:// URLs are folders of this machine.
  """

  def __init__(self, root: str | os.PathLike, cache: str | os.PathLike = ""):
    """Looks at nothing yet.

    Args:
      root: the folder, or its URL.
      cache: where remote files are copied to; '' is `default_cache()`.
    """
    self.root = _without_scheme(str(root))
    self._cache = Path(cache) if cache else default_cache()
    self._copies: dict[str, Path] = {}

  def __str__(self) -> str:
    return self.root

  @functools.cached_property
  def names(self) -> list[str]:
    """All files in it and below, sorted, without the hidden ones.

    Links to folders are followed, into each folder once.

    Raises:
      UserError: it does not exist, or a part of it cannot be read.
    """
    found = list_folder(self.root) if is_url(self.root) else _walk(self.root)
    return sorted(name for name in found if not _is_hidden(name))

  def address(self, name: str) -> str:
    """The path or URL of a file."""
    return _without_scheme(
      name if is_url(name) else posixpath.join(self.root, name)
    )

  def local(self, name: str) -> Path:
    """The file, on this machine: a remote one is copied the first time.

    Raises:
      VideoError: a remote file is missing or cannot be copied. One of this
        machine may be missing too: that is for whoever opens it to say.
    """
    address = self.address(name)
    if not is_url(address):
      return Path(address)
    copy = self._copies.get(address)
    if copy is None or not copy.exists():
      copy = self._copies[address] = fetch(address, self._cache)
    return copy


def _without_scheme(address: str) -> str:
  return address.removeprefix("file://")


def _is_hidden(name: str) -> bool:
  return any(part.startswith(".") for part in name.split("/"))


def _walk(root: str) -> Iterator[str]:
  if not os.path.isdir(root):
    raise UserError(f"{root}:", "no such folder", "give a folder of videos")
  seen = set()
  for here, folders, files in os.walk(root, onerror=_stop, followlinks=True):
    real = os.path.realpath(here)
    if real in seen:  # links can lead back to where we were
      folders.clear()
      continue
    seen.add(real)
    folders.sort()
    for file in files:
      yield Path(here, file).relative_to(root).as_posix()


def _stop(error: OSError) -> None:
  raise UserError(
    f"{error.filename}:",
    f"this folder cannot be read ({error.strerror})",
    "give yourself the right to",
  ) from error


@contextlib.contextmanager
def atomic_upload(address: str | os.PathLike) -> Iterator[Path]:
  """Gives a name on this machine to write to, then puts that file in place.

  As `replacing`, but `address` may be a URL.

  Raises:
    UserError: the place cannot be written.
  """
  address = _local_address(address)
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
  if _read(_local_address(address)) == data:
    return False
  with atomic_upload(address) as temporary:
    temporary.write_bytes(data)
  return True


def require_writable(folder: str | os.PathLike) -> None:
  """Makes a folder, and writes a file into it that is removed again.

  Raises:
    UserError: that cannot be done.
  """
  folder = _local_address(folder)
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
    system, path = fsspec.core.url_to_fs(_local_address(address))
    system.rm_file(path)


def names_in(folder: str | os.PathLike) -> list[str]:
  """As `Folder.names`; none where there is no such folder yet.

  Raises:
    UserError: it cannot be read.
  """
  folder = _local_address(folder)
  if not is_url(folder):
    return Folder(folder).names if os.path.isdir(folder) else []
  with _reaching(folder):
    system, path = fsspec.core.url_to_fs(folder)
    system.invalidate_cache()  # others write there
    if not system.find(path):
      return []
  return Folder(folder).names


@contextlib.contextmanager
def local_copy(
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


def _local_address(address: str | os.PathLike) -> str:
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
      f"{address}:",
      f"cannot be read or written ({words})",
      "check URL, credentials and that its package is installed",
    ) from error
