"""Local and remote folders: files are cached for reading and written whole.

Addresses are paths, or URLs of any file system that fsspec supports. Its caches
do not serve: `simplecache` misses new versions of a file, `filecache` does over
HTTP, and neither notices a copy cut short. Retries are left to file systems.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import os
from pathlib import Path
import posixpath
import re
import tempfile
from typing import NoReturn
import uuid

import fsspec
from fsspec.registry import known_implementations

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage.atomic import AnyPath, replacing, writing
from lumiere_jax.storage.files import user_cache

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ENDING = re.compile(r"\.\w{1,8}")
_BLOCK = 1 << 24  # bytes read at a time

# Distinguishes versions of a file where `ukey` does not: over HTTP.
_VERSION = ("size", "mtime", "ETag")


def is_url(name: str) -> bool:
  """Whether a name is a URL, such as gs://bucket/x.mp4."""
  return bool(_URL.match(name))


def default_cache() -> Path:
  """The default folder for copies of remote files: in the user's cache."""
  return user_cache("remote")


def fetch(url: str, cache: Path) -> Path:
  """Copies a remote file into a cache, unless this version is there already.

  Copies are named by a hash of the URL and of what its file system tells about
  the version (size, time, checksum), with the ending of the URL.

  Raises:
    VideoError: the file is missing or cannot be read.
    UserError: the protocol is not supported, or the cache cannot be written.
  """
  with _remote_errors(url, VideoError):
    system, path = fsspec.url_to_fs(url)
    info = system.info(path)
    if info["type"] == "directory":
      raise VideoError(url, "not a file: give a video file")
    version = url, system.ukey(path), *map(info.get, _VERSION)
  digest = hashlib.sha256(repr(version).encode()).hexdigest()
  ending = posixpath.splitext(url.partition("?")[0])[1]
  ending = ending if _ENDING.fullmatch(ending) else ""
  copy = cache / digest[:2] / f"{digest}{ending}"
  if not copy.exists():
    with writing(copy) as file:
      for block in _blocks(url):
        file.write(block)
      size = info.get("size")
      if size not in (None, file.tell()):
        raise VideoError(
          url, f"cut short: {file.tell()} of {size} bytes came; try again"
        )
  return copy


def _blocks(url: str) -> Iterator[bytes]:
  with _remote_errors(url, VideoError), fsspec.open(url) as source:
    yield from iter(lambda: source.read(_BLOCK), b"")


@contextlib.contextmanager
def _remote_errors(url: str, kind: type = UserError) -> Iterator[None]:
  """Converts errors of remote file systems; each defines its own types.

  The `kind` is VideoError where one bad file should not stop the others.
  """
  try:
    yield
  except UserError:
    raise
  except ImportError as error:
    protocol = url.partition("://")[0].lower()
    known = known_implementations.get(protocol, {"class": protocol})
    package = known["class"].partition(".")[0]
    if package == "fsspec":
      extra = "http" if protocol == "https" else protocol
      package = f"'fsspec[{extra}]'"
    raise UserError(
      f"{url}:",
      f"{protocol} needs a package that is not installed ({_one_line(error)})",
      f"pip install {package}",
    ) from error
  except Exception as error:
    if kind is not VideoError:
      raise UserError(
        f"{url}:",
        f"cannot be read or written ({_one_line(error)})",
        "check the URL and your credentials",
      ) from error
    reason = f"cannot be reached: {_one_line(error)}; check URL and credentials"
    if isinstance(error, FileNotFoundError):  # some also raise it if offline
      reason = "missing: no such remote file, or no answer from its server"
    raise VideoError(url, reason) from error


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__


class Folder:
  """A local or remote folder, whose files are accessed by relative name or URL.

  Attributes:
    root: its path or URL; file:// URLs become paths.
  """

  def __init__(self, root: AnyPath, cache: AnyPath = ""):
    """Reads nothing yet; remote files are copied to `cache`.

    An empty `cache` is `default_cache()`.
    """
    self.root = _without_scheme(root)
    self._cache = Path(cache) if cache else default_cache()
    self._copies: dict[str, Path] = {}

  def __str__(self) -> str:
    return self.root

  @functools.cached_property
  def names(self) -> list[str]:
    """All files in it and its subfolders, sorted, without hidden ones.

    Links to folders are followed, each folder is read once. A missing local
    folder or an empty remote one is a UserError.
    """
    if names := names_in(self.root):
      return names
    if is_url(self.root):
      fix = "give the URL of a folder of videos"
      raise UserError(f"{self.root}:", "no files", fix)
    if not os.path.isdir(self.root):
      fix = "give a folder of videos"
      raise UserError(f"{self.root}:", "no such folder", fix)
    return []

  def address(self, name: str) -> str:
    """The path or URL of a file."""
    return _without_scheme(
      name if is_url(name) else posixpath.join(self.root, name)
    )

  def local(self, name: str) -> Path:
    """The path of a file; a remote one is copied on first use.

    Raises:
      VideoError: a remote file is missing or cannot be copied. Local files
        are not checked.
    """
    address = self.address(name)
    if not is_url(address):
      return Path(address)
    if address not in self._copies or not self._copies[address].exists():
      self._copies[address] = fetch(address, self._cache)
    return self._copies[address]


def names_in(folder: AnyPath) -> list[str]:
  """As `Folder.names`; [] if the folder does not exist."""
  folder = _without_scheme(folder)
  names = _find(folder) if is_url(folder) else _walk(folder)
  return sorted(n for n in names if not re.search(r"(^|/)\.", n))


def _without_scheme(address: AnyPath) -> str:
  return os.fspath(address).removeprefix("file://")


def _find(url: str) -> list[str]:
  with _remote_errors(url):
    system, path = fsspec.url_to_fs(url)
    system.invalidate_cache()  # other processes may write there
    found, prefix = system.find(path), path.rstrip("/") + "/"
  return [f.removeprefix(prefix) for f in found if f.startswith(prefix)]


def _walk(root: str) -> Iterator[str]:
  seen: set[str] = set()
  if not os.path.isdir(root):
    return
  for here, folders, files in os.walk(root, onerror=_raise, followlinks=True):
    real = os.path.realpath(here)
    if real in seen:  # a cycle of links
      folders.clear()
      continue
    seen.add(real)
    folders.sort()
    for file in files:
      yield Path(here, file).relative_to(root).as_posix()


def _raise(error: OSError) -> NoReturn:
  raise UserError(
    f"{error.filename}:",
    f"this folder cannot be read ({error.strerror})",
    "change its permissions",
  ) from error


@contextlib.contextmanager
def atomic_upload(address: AnyPath) -> Iterator[Path]:
  """Yields a local path to write to, then moves that file to a path or URL."""
  address = _without_scheme(address)
  if not is_url(address):
    with replacing(address) as temporary:
      yield temporary
    return
  with tempfile.TemporaryDirectory() as folder:
    temporary = Path(folder, posixpath.basename(address))
    yield temporary
    with _remote_errors(address):
      _upload(temporary, address)


def place_bytes(address: AnyPath, data: bytes) -> bool:
  """Writes a file unless it has this content; returns whether it wrote."""
  if _read(_without_scheme(address)) == data:
    return False
  with atomic_upload(address) as temporary:
    temporary.write_bytes(data)
  return True


def require_writable(folder: AnyPath) -> None:
  """Raises a UserError unless the folder exists or can be made, and written."""
  folder = _without_scheme(folder).rstrip("/")
  probe = f"{folder}/.probe-{uuid.uuid4().hex}"
  if is_url(folder):
    with tempfile.NamedTemporaryFile() as empty, _remote_errors(folder):
      _upload(Path(empty.name), probe)
  else:
    place_bytes(probe, b"")
  remove(probe)


def remove(address: AnyPath) -> None:
  """Removes a file if it exists and that is allowed."""
  with contextlib.suppress(Exception):
    system, path = fsspec.url_to_fs(_without_scheme(address))
    system.rm_file(path)


@contextlib.contextmanager
def local_copy(folder: AnyPath, cache: AnyPath = "") -> Iterator[Folder]:
  """A folder whose copies are removed afterwards, or kept in a `cache`."""
  with tempfile.TemporaryDirectory() as copies:
    yield Folder(folder, cache or copies)


def _read(address: str) -> bytes | None:
  if not is_url(address):
    return Path(address).read_bytes() if os.path.isfile(address) else None
  with _remote_errors(address):
    system, path = fsspec.url_to_fs(address)
    system.invalidate_cache()
    return system.cat_file(path) if system.exists(path) else None


def _upload(source: Path, address: str) -> None:
  system, path = fsspec.url_to_fs(address)
  parent, name = posixpath.split(path)
  hidden = f"{parent}/.{name}.{uuid.uuid4().hex}.part"
  # Buckets have no folders; some file systems refuse to make one.
  with contextlib.suppress(Exception):
    system.makedirs(parent, exist_ok=True)
  try:
    system.put_file(os.fspath(source), hidden)
    system.mv(hidden, path)
  except Exception:
    with contextlib.suppress(Exception):  # must not hide the first error
      system.rm_file(hidden)
    raise
