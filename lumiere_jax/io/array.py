"""Arrays in .npy files."""

import numpy as np

from lumiere_jax.io.errors import VideoError, require_file


def read_npy(path) -> np.ndarray:
  """Reads an array; never unpickles.

  Raises:
    VideoError: it is missing, or no such file.
  """
  require_file(path)
  try:
    with open(path, "rb") as file:
      return np.lib.format.read_array(file, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise VideoError(path, f"not an array: {error}") from error
