"""Text files."""

import os
from pathlib import Path

from lumiere_jax.typing import UserError


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
      f"{name}: cannot be read ({error.strerror}); give a text file"
    ) from error
  try:
    return data.decode("utf-8-sig")  # spreadsheets put a byte order mark
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b"\n") + 1
    raise UserError(
      f"{name}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); "
      "save it as UTF-8"
    ) from error
