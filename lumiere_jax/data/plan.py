"""Which clip stands where: a function of the step alone.

Each group of clips is an endless stream: one permutation after the other, so
that every clip comes once before any comes again. Steps take turns among the
groups in rounds; a round has each group's share of steps, in an order of its
own. What a step takes is computed, never remembered: a run that is resumed,
or that runs on another number of hosts, sees the clips it would have seen.
"""

from collections.abc import Iterator, Sequence
import functools

import numpy as np

from lumiere_jax.data.source import Group

# Keeps the seeds of permutations and of rounds apart from those of clips.
_PERMUTATION, _ROUND = 1, 2


class Plan:
  """The order of clips in training."""

  def __init__(self, groups: Sequence[Group], batch_size: int, seed: int):
    self._made_of = groups, batch_size, seed
    self._groups = [np.asarray(g.indices) for g in groups]
    self._batch_size, self._seed = batch_size, seed
    self._turns = np.array([_turns(g, batch_size) for g in groups])
    self._permutation = functools.lru_cache(4 * len(groups))(self._permute)
    self._round = functools.lru_cache(2)(self._shuffle)

  def __reduce__(self):
    """To another process goes what it is made of, not what it remembers."""
    return Plan, self._made_of

  def candidates(self, step: int, place: int) -> Iterator[int]:
    """The clip at `place` in the batch of `step`, then those to try instead.

    All of its group, so that whichever can be read has the shape of the batch.
    """
    number, offset = divmod(step, int(self._turns.sum()))
    order = self._round(number)
    group = order[offset]
    before = number * self._turns[group] + (order[:offset] == group).sum()
    position = int(before) * self._batch_size + place
    indices = self._groups[group]
    epoch, within = divmod(position, len(indices))
    order = self._permutation(int(group), epoch)
    for k in range(len(indices)):
      yield int(indices[order[(within + k) % len(indices)]])

  def _permute(self, group: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, group, epoch, _PERMUTATION))
    return rng.permutation(len(self._groups[group]))

  def _shuffle(self, number: int) -> np.ndarray:
    turns = np.repeat(np.arange(len(self._groups)), self._turns)
    rng = np.random.default_rng((self._seed, number, _ROUND))
    return rng.permutation(turns)


def _turns(group: Group, batch_size: int) -> int:
  """Steps of a group in a round."""
  return max(1, round(group.weight * -(-len(group.indices) // batch_size)))
