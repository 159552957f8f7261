"""A folder of files, on this machine or wherever fsspec reaches."""

from collections.abc import Iterator
import functools
import os
from pathlib import Path
import posixpath

from lumiere_jax.io.remote import default_cache, fetch, is_url, list_folder
from lumiere_jax.typing import UserError


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
    self.root = _here(str(root))
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
    return _here(name if is_url(name) else posixpath.join(self.root, name))

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


def _here(address: str) -> str:
  return address.removeprefix("file://")


def _is_hidden(name: str) -> bool:
  return any(part.startswith(".") for part in name.split("/"))


def _walk(root: str) -> Iterator[str]:
  if not os.path.isdir(root):
    raise UserError(f"{root}: no such folder; give a folder of videos")
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
    f"{error.filename}: this folder cannot be read ({error.strerror}); "
    "give yourself the right to"
  ) from error
