"""A stage on its way from one form to another, its weights still unread."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from tqdm import tqdm

from lumiere_jax.io.lazy import Lazy
from lumiere_jax.pipelines.stage import StageConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carried:
  """A stage whose leaves are read when they are written.

  Attributes:
    name: of the stage, as in `training.config.PARENTS`.
    config: what sampling needs to know.
    leaves: path -> array, or one that is made when asked for.
    about: what else bundle.json says of it: `trained_on`, `licence`, ...
  """

  name: str
  config: StageConfig
  leaves: Mapping[str, Lazy | np.ndarray]
  about: Mapping[str, Any]

  @property
  def nbytes(self) -> int:
    """Of all leaves."""
    return sum(leaf.nbytes for leaf in self.leaves.values())


def halved(stage: Carried) -> Carried:
  """The stage in float16: each weight to about 1 part in 2,000."""

  def half(leaf: Lazy | np.ndarray) -> Lazy:
    make = lambda: np.asarray(leaf).astype(np.float16)
    return Lazy(leaf.shape, np.dtype(np.float16), make)

  leaves = {path: half(leaf) for path, leaf in stage.leaves.items()}
  return dataclasses.replace(stage, leaves=leaves)


def watched(
  leaves: Mapping[str, Lazy | np.ndarray], bar: tqdm
) -> dict[str, Lazy]:
  """The same leaves; a bar in bytes moves as they are made."""

  def watch(leaf: Lazy) -> Lazy:
    def make() -> np.ndarray:
      array = np.asarray(leaf)
      bar.update(leaf.nbytes)
      return array

    return Lazy(leaf.shape, np.dtype(leaf.dtype), make)

  return {path: watch(leaf) for path, leaf in leaves.items()}


def progress(total: int, what: str) -> tqdm:
  """A bar in bytes, with the time that is left."""
  return tqdm(
    total=total,
    desc=what,
    unit="B",
    unit_scale=True,
    dynamic_ncols=True,
    disable=not total,
  )
