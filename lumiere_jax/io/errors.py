"""Files that cannot serve as videos or pictures, and why."""

import os

from lumiere_jax.io.blob import Blob
from lumiere_jax.typing import UserError


class VideoError(UserError):
  """A file that cannot serve as a video or picture.

  Attributes:
    path: the file.
    reason: "kind: details", the same without the file's name.
  """

  def __init__(self, path, reason: str):
    super().__init__(f"{path}: {reason}")
    self.path = str(path)
    self.reason = reason


def require_file(path) -> None:
  """Raises a VideoError unless `path` is a file with something in it."""
  if isinstance(path, Blob):
    if not path.data:
      raise VideoError(path, "empty file: 0 bytes")
    return
  if os.path.islink(path) and not os.path.exists(path):
    raise VideoError(path, "missing: a link that leads to no file")
  if not os.path.exists(path):
    raise VideoError(path, "missing: no such file")
  if not os.path.isfile(path):
    raise VideoError(path, "not a file: give a video file")
  if not os.access(path, os.R_OK):
    raise VideoError(path, "not readable: permission denied")
  if not os.path.getsize(path):
    raise VideoError(path, "empty file: 0 bytes")
