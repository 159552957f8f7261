"""Local and remote folders: files are cached for reading and written whole.

Addresses are paths, or URLs of any file system that fsspec supports. Its caches
do not serve: `simplecache` misses new versions of a file, `filecache` does over
HTTP, and neither notices a copy cut short.

Transient errors are retried here, since only some file systems do so: with
growing waits, drawn at random so that many processes do not return at once.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import functools
import hashlib
import itertools
import os
from pathlib import Path
import posixpath
import random
import re
import ssl
import sys
import tempfile
import time
from typing import Any, NoReturn, TypeVar
import uuid

import fsspec
from fsspec.registry import known_implementations

from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage.atomic import AnyPath, replacing, writing
from lumiere_jax.storage.files import user_cache

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ENDING = re.compile(r"\.\w{1,8}")
_BLOCK = 1 << 24  # bytes read at a time

_WAITS_S = 1.0, 2.0, 4.0, 8.0
"""Longest waits before each retry."""

# Other OSErrors may pass.
_PERMANENT_ERRORS = (
  *(FileNotFoundError, PermissionError, FileExistsError),
  *(IsADirectoryError, NotADirectoryError, ssl.SSLCertVerificationError),
  UserError,
)
_PERMANENT_NUMBERS = {
  *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.EFBIG),
  errno.ENAMETOOLONG,
}
# Errors of file systems that do not tell a status are known by their type.
_PERMANENT_TYPES = re.compile(
  "auth|credential|denied|forbidden|invalid|notfound|nosuch|perm|unsupported",
  re.IGNORECASE,
)
_STATUS_NAMES = "status", "status_code", "code"
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}

_retries = itertools.count(1)
_jitter = random.Random()
T = TypeVar("T")

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
  info, key = _retrying(lambda: _describe(url))
  version = url, key, *map(info.get, _VERSION)
  digest = hashlib.sha256(repr(version).encode()).hexdigest()
  ending = posixpath.splitext(url.partition("?")[0])[1]
  ending = ending if _ENDING.fullmatch(ending) else ""
  copy = cache / digest[:2] / f"{digest}{ending}"
  if not copy.exists():
    _retrying(lambda: _download(url, copy, info.get("size")))
  return copy


def _describe(url: str) -> tuple[dict[str, Any], str]:
  """What a file system tells about a file, and its key of this version."""
  with _remote_errors(url, VideoError):
    system, path = fsspec.url_to_fs(url)
    info = system.info(path)
    if info["type"] == "directory":
      raise VideoError(url, "not a file: give a video file")
    return info, system.ukey(path)


def _download(url: str, copy: Path, size: int | None) -> None:
  with writing(copy) as file:
    for block in _blocks(url):
      file.write(block)
    if size not in (None, file.tell()):
      raise VideoError(
        url, f"cut short: {file.tell()} of {size} bytes came; try again"
      ) from EOFError()


def _retrying(function: Callable[[], T]) -> T:
  """Calls a function again while it raises transient errors.

  They are the causes of its UserErrors. Each retry is logged.
  """
  for number, longest_s in enumerate(_WAITS_S, 1):
    try:
      return function()
    except UserError as error:
      if not _is_transient(error):
        raise
      wait_s = longest_s * _jitter.uniform(0.5, 1)
      print(
        f"remote: {error}; retry {number} of {len(_WAITS_S)} in {wait_s:.1f} s "
        f"({next(_retries)} retries so far)",
        file=sys.stderr,
      )
      time.sleep(wait_s)
  return function()


def _is_transient(error: BaseException) -> bool:
  """Whether the first cause of an error may pass; decided by HTTP status.

  Without status it is decided by the type; the file systems' own types pass
  unless their name says otherwise. Errors without cause are ours.
  """
  causes = [error]
  while (cause := causes[-1].__cause__) is not None and cause not in causes:
    causes.append(cause)
  for cause in causes:
    if status := _status(cause):
      return status in _PASSING_STATUS
  first = causes[-1]
  if isinstance(first, _PERMANENT_ERRORS):
    return False
  if isinstance(first, OSError) and first.errno in _PERMANENT_NUMBERS:
    return False
  if isinstance(first, OSError | EOFError):
    return True
  name = type(first).__name__
  is_foreign = type(first).__module__ != "builtins"
  return is_foreign and not _PERMANENT_TYPES.search(name)


def _status(error: BaseException) -> int | None:
  """The HTTP status that an error carries, where its library puts it."""
  if type(error).__module__ == "aiohttp.http_exceptions":
    return None  # An answer cut short: 400 is what it would say to a client.
  response = getattr(error, "response", None)
  if isinstance(response, dict):  # Of botocore.
    values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
  else:
    holders = itertools.product((error, response), _STATUS_NAMES)
    values = [getattr(holder, name, None) for holder, name in holders]
  for value in values:
    with contextlib.suppress(TypeError, ValueError):
      if 400 <= int(value) < 600:
        return int(value)
  return None


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
  url = _without_scheme(folder)
  names = _retrying(lambda: _find(url)) if is_url(url) else _walk(url)
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
    _retrying(lambda: _upload(temporary, address))


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
    with tempfile.NamedTemporaryFile() as empty:
      _retrying(lambda: _upload(Path(empty.name), probe, folder))
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
  return _retrying(lambda: _read_remote(address))


def _read_remote(address: str) -> bytes | None:
  with _remote_errors(address):
    system, path = fsspec.url_to_fs(address)
    system.invalidate_cache()
    return system.cat_file(path) if system.exists(path) else None


def _upload(source: Path, address: str, name: str = "") -> None:
  """Uploads a file under a hidden name and renames it.

  Errors call it `name`, or else by its address.
  """
  with _remote_errors(name or address):
    system, path = fsspec.url_to_fs(address)
    parent, base = posixpath.split(path)
    hidden = f"{parent}/.{base}.{uuid.uuid4().hex}.part"
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
