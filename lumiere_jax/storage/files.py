"""Names of output files, text files, the user's cache folder."""

import itertools
import os
from pathlib import Path
import re

from lumiere_jax.errors import UserError, option


def slug(text: str, most: int = 40) -> str:
  """A text as a part of a file name: a-z, 0-9 and single hyphens.

  Args:
    text: such as a caption.
    most: characters of the name.

  Returns:
    '' where the text has no such letters, as in other scripts.
  """
  return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:most].strip("-")


def unused(path: str | os.PathLike) -> str:
  """The path itself if nothing is there, else the first free NAME-2.EXT, ...

  Args:
    path: a file, or a folder; with / at its end a folder whatever its name,
      which gets its number after the whole of it.

  Returns:
    As a string, which keeps the / at its end.
  """
  name, slash = _parts(path)
  stem, ending = (name, "") if slash else os.path.splitext(name)
  numbered = (f"{stem}-{k}{ending}" for k in itertools.count(2))
  names = itertools.chain([name], numbered)
  return next(n for n in names if not os.path.lexists(n)) + slash


def check_unused(path: str | os.PathLike, overwrite: bool) -> None:
  """Raises a UserError if something is at `path` that may not be replaced.

  Args:
    path: a file or folder to write.
    overwrite: whether the user said that it may be.
  """
  if not overwrite and os.path.lexists(_parts(path)[0]):
    raise UserError(
      f"{path}:",
      "is there already",
      f"give {option('overwrite')} to replace it, or another name",
    )


def _parts(path: str | os.PathLike) -> tuple[str, str]:
  """A path and the / at its end, behind which a file would not be seen."""
  path = os.fspath(path)
  return str(Path(path)), "/" if path.endswith("/") else ""


def read_text(path: str | os.PathLike, name: str = "") -> str:
  """Reads a text in UTF-8, without a byte order mark.

  Args:
    path: the file.
    name: that the user knows it by; '' is its path.

  Raises:
    UserError: it cannot be read, or a line of it is not UTF-8.
  """
  name = name or path
  try:
    data = Path(path).read_bytes()
  except OSError as error:
    raise UserError(
      f"{name}:", f"cannot be read ({error.strerror})", "give a text file"
    ) from error
  try:
    return data.decode("utf-8-sig")  # spreadsheets put a byte order mark
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b"\n") + 1
    raise UserError(
      "",
      f"{name}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x})",
      "save it as UTF-8",
    ) from error


def user_cache(name: str) -> Path:
  """The folder `name` in the user's cache; it need not exist.

  In $XDG_CACHE_HOME, or ~/.cache where that is not set.
  """
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "lumiere_jax" / name
