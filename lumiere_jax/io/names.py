"""Names of files to write: from a text, and such as are not taken yet."""

import itertools
import os
from pathlib import Path
import re

from lumiere_jax.typing import UserError


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
      f"{path}: is there already; give --overwrite to replace it, or another "
      "name"
    )


def _parts(path: str | os.PathLike) -> tuple[str, str]:
  """A path and the / at its end, behind which a file would not be seen."""
  path = os.fspath(path)
  return str(Path(path)), "/" if path.endswith("/") else ""
