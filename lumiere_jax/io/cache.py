"""Where this program keeps what it could make or fetch again."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
  """The folder `name` in the user's cache; it need not exist.

  In $XDG_CACHE_HOME, or ~/.cache where that is not set.
  """
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "lumiere_jax" / name
