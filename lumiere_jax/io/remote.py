"""Remote files: listed, and copied whole to this machine, through fsspec.

Whatever fsspec reaches works: https://, gs://, s3:// and others, each by a
package of its own, with the credentials where that package looks for them.
"""

from collections.abc import Iterator
import contextlib
import hashlib
from pathlib import Path
import posixpath
import re
import sys

import fsspec
from fsspec.registry import known_implementations

from lumiere_jax.io.atomic import writing
from lumiere_jax.io.cache import user_cache
from lumiere_jax.io.errors import VideoError
from lumiere_jax.typing import UserError

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
    raise UserError(f"{url}: no files; give the URL of a folder of videos")
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
      f"{url}: {protocol} needs a package that is not installed "
      f"({_one_line(error)}); pip install {package}"
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
