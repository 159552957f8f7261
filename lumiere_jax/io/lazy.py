"""Arrays that are made when they are asked for, and not kept.

A model is a dict of names and arrays; made of these it weighs nothing, and
what is done to it (renaming, turning, joining, saving) needs the memory of
one array at a time.
"""

from collections.abc import Callable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Lazy:
  """Stands for an array of known shape and dtype.

  Attributes:
    shape: of the array.
    dtype: of the array.
    make: makes it, each time it is called.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Number of values."""
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return len(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes of the array once it is made."""
    return self.size * self.dtype.itemsize

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    """The array itself, for numpy."""
    del copy  # it is always a fresh one
    return np.asarray(self.make(), dtype)
