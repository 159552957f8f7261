"""Videos and pictures in one run, some steps for each."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from lumiere_jax.data.sources.base import Group, Source
from lumiere_jax.typing import Clip

# Rounds of steps are made this many times longer, so that shares rounded to
# whole steps stay near what is asked for.
_FINER = 16


class Mix:
  """The clips of two sources; those of the second follow in index.

  Batches hold clips of one group, so a step takes from one source only.
  """

  def __init__(self, first: Source, second: Source, share: float):
    """Joins two sources.

    Args:
      first: any.
      second: any.
      share: of the steps that take from the second. Near it, where each group
        fills several batches: one that fills less than a batch comes more
        often, as its last, unfilled batch counts as one.
    """
    self.first, self.second, self.share = first, second, share

  def __len__(self) -> int:
    return len(self.first) + len(self.second)

  @property
  def groups(self) -> tuple[Group, ...]:
    """Those of the first, then of the second, weighted by the share."""
    first, second = self.first.groups, self.second.groups
    odds = self.share / (1 - self.share)
    scale = _FINER * odds * _amount(first) / _amount(second)
    moved = [_move(group, len(self.first)) for group in second]
    return (
      *(_weigh(group, _FINER) for group in first),
      *(_weigh(group, scale) for group in moved),
    )

  def captions(self, index: int) -> tuple[str, ...]:
    """What clip `index` shows."""
    source, index = self._find(index)
    return source.captions(index)

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    """Clip `index` of either source."""
    source, index = self._find(index)
    return source.clip(index, rng)

  def _find(self, index: int) -> tuple[Source, int]:
    after = index - len(self.first)
    return (self.first, index) if after < 0 else (self.second, after)


def _amount(groups: Sequence[Group]) -> float:
  return sum(group.weight * len(group.indices) for group in groups)


def _weigh(group: Group, factor: float) -> Group:
  return dataclasses.replace(group, weight=group.weight * factor)


def _move(group: Group, by: int) -> Group:
  return dataclasses.replace(group, indices=[by + i for i in group.indices])
