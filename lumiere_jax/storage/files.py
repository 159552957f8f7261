"""Names of output files, reading of text files, the user's cache folder."""

from collections.abc import Collection
import itertools
import os
from pathlib import Path
import re

from lumiere_jax.errors import UserError, option


def slug(text: str, max_length: int = 40) -> str:
  """A text as a part of a file name: a-z, 0-9 and single hyphens.

  It is '' if the text has none of these, as in other scripts.
  """
  words = re.findall(r"[a-z0-9]+", text.lower())
  return "-".join(words)[:max_length].strip("-")


def expand_user(text: str) -> str:
  """Replaces the ~ of '~/x' or 'NAME=~/x' by the user's home folder."""
  name, equals, path = text.rpartition("=~")
  return name + equals[:1] + os.path.expanduser(equals[1:] + path)


def unused(path: str | os.PathLike, taken: Collection[str] = ()) -> str:
  """The path itself if it is free, else the first free NAME-2.EXT, ...

  Free is what does not exist and is not among the `taken`. A path that ends
  with / is a folder: the number follows its whole name.
  """
  name, slash = _parts(path)
  stem, ending = (name, "") if slash else os.path.splitext(name)
  numbered = (f"{stem}-{k}{ending}" for k in itertools.count(2))
  names = itertools.chain([name], numbered)
  free = (n for n in names if n not in taken and not os.path.lexists(n))
  return next(free) + slash


def check_unused(path: str | os.PathLike, overwrite: bool) -> None:
  """Raises a UserError if `path` exists and may not be overwritten."""
  if not overwrite and os.path.lexists(_parts(path)[0]):
    raise UserError(
      f"{path}:",
      "is there already",
      f"give {option('overwrite')} to replace it, or another name",
    )


def _parts(path: str | os.PathLike) -> tuple[str, str]:
  """A path without the / at its end, and that /."""
  path = os.fspath(path)
  return str(Path(path)), "/" if path.endswith("/") else ""


def read_text(path: str | os.PathLike, name: str = "") -> str:
  """Reads a text file in UTF-8, without its byte order mark.

  Errors call it `name`, or else by its path.
  """
  name = name or os.fspath(path)
  try:
    data = Path(path).read_bytes()
  except OSError as error:
    raise UserError(
      f"{name}:", f"cannot be read ({error.strerror})", "give a text file"
    ) from error
  try:
    return data.decode("utf-8-sig")  # spreadsheets write byte order marks
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b"\n") + 1
    raise UserError(
      f"{name}, line {line}:",
      f"not UTF-8 (byte 0x{data[error.start]:02x})",
      "save it as UTF-8",
    ) from error


def user_cache(name: str) -> Path:
  """A folder in the user's cache: below $XDG_CACHE_HOME, or ~/.cache."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "lumiere_jax" / name
