"""Joint training on two sources, such as videos and pictures."""

import dataclasses

import numpy as np

from lumiere_jax.data.sources.base import Group, Source
from lumiere_jax.typing import Clip

# Factor by which rounds of steps are longer, so that shares rounded to whole
# steps stay close to the requested share.
_FINER = 16


class MixtureSource:
  """The clips of two sources; indices of the second follow the first.

  Batches hold clips of one group, so each step takes from one source only.
  """

  def __init__(self, first: Source, second: Source, share: float):
    """Takes a `share` of the steps from the second source.

    It is approximate: a group smaller than a batch comes more often, because
    its last, partly filled batch counts as one.
    """
    self.first, self.second, self.share = first, second, share

  def __len__(self) -> int:
    return len(self.first) + len(self.second)

  @property
  def groups(self) -> tuple[Group, ...]:
    """The groups of both sources, weighted by the share."""
    first, second = self.first.groups, self.second.groups
    amount = lambda groups: sum(g.weight * len(g.indices) for g in groups)
    odds = self.share / (1 - self.share)
    scale = _FINER * odds * amount(first) / amount(second)
    start = len(self.first)
    return (
      *(dataclasses.replace(g, weight=g.weight * _FINER) for g in first),
      *(
        Group(indices=[start + i for i in g.indices], weight=g.weight * scale)
        for g in second
      ),
    )

  def captions(self, index: int) -> tuple[str, ...]:
    source, index = self._find(index)
    return source.captions(index)

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    source, index = self._find(index)
    return source.clip(index, rng)

  def _find(self, index: int) -> tuple[Source, int]:
    after = index - len(self.first)
    return (self.first, index) if after < 0 else (self.second, after)
