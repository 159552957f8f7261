"""Loads clips into batches, in threads or processes.

The clips of a batch are a function of the step alone, and the random choices
in a clip are a function of its position, so training resumes bit for bit.
grain's shuffling and mixing would draw other clips, and know neither rounds of
one shape per batch nor replacements of clips that cannot be read.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
import sys
import time
from typing import Any

import grain
import numpy as np

from lumiere_jax.data.masks import MaskMix
from lumiere_jax.data.prefetch import map_in_processes
from lumiere_jax.data.sources.base import Group, Source, UnreadableClip
from lumiere_jax.errors import UserError

# Sets the seeds of permutations and rounds apart from those of clips.
_PERMUTATION, _ROUND = 1, 2


class ClipOrder:
  """The order of clips in training.

  Each step takes a batch from one group. A round has a fixed number of steps
  of each group, in shuffled order; an epoch of a group permutes its clips.
  """

  def __init__(self, groups: Sequence[Group], batch_size: int, seed: int):
    self._args = groups, batch_size, seed
    self._groups = [np.asarray(g.indices) for g in groups]
    self._batch_size, self._seed = batch_size, seed
    self._round_steps = np.array([_round_steps(g, batch_size) for g in groups])
    self._permutation = functools.lru_cache(4 * len(groups))(self._permute)
    self._round = functools.lru_cache(2)(self._shuffle)

  def __reduce__(self):
    """Pickles the constructor arguments only, not the cached permutations."""
    return ClipOrder, self._args

  def candidates(self, step: int, place: int) -> Iterator[int]:
    """The clip at `place` in the batch of `step`, then its replacements.

    Replacements for an unreadable clip are of its group, hence of its shape.
    """
    number, offset = divmod(step, int(self._round_steps.sum()))
    order = self._round(number)
    group = order[offset]
    before = number * self._round_steps[group] + (order[:offset] == group).sum()
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
    steps = np.repeat(np.arange(len(self._groups)), self._round_steps)
    rng = np.random.default_rng((self._seed, number, _ROUND))
    return rng.permutation(steps)


def _round_steps(group: Group, batch_size: int) -> int:
  """Number of steps of a group in a round."""
  return max(1, round(group.weight * -(-len(group.indices) // batch_size)))


Batch = dict[str, Any]
"""video (b, t, h, w, c) uint8; caption: list of b; index (b,) in the source;
with masks, mask (b, t, h, w, 1) uint8, 1 = given."""

_AHEAD = 2  # Batches to prefetch.


class LoadTimer:
  """Mean loading time of clips, over all threads."""

  def __init__(self) -> None:
    self._seconds: deque[float] = deque()

  @contextlib.contextmanager
  def timing(self) -> Iterator[None]:
    """Context manager that times the loading of one clip."""
    began = time.monotonic()
    yield
    self._seconds.append(time.monotonic() - began)

  def take(self) -> float | None:
    """Mean seconds per clip since the last call; None if there were none."""
    taken = [self._seconds.popleft() for _ in range(len(self._seconds))]
    return float(np.mean(taken)) if taken else None

  def __reduce__(self):
    """Starts at zero in another process, whose counts never come back."""
    return LoadTimer, ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
  """Loads clips of a source, with a mask each if `masks` draw them."""

  source: Source
  seed: int
  masks: MaskMix | None = None
  timer: LoadTimer = dataclasses.field(default_factory=LoadTimer)

  def __post_init__(self):
    if self.seed < 0:
      raise UserError(f"seed={self.seed}", "is negative", "give 0 or more")
    if not len(self.source):
      raise UserError("data source", "is empty", "give it at least one clip")

  def load(
    self, candidates: Iterable[int], position: int | None, repeat: int = 0
  ) -> Batch:
    """Loads the first readable candidate, without a batch axis.

    Args:
      candidates: indices of clips.
      position: number of the clip since the start of training, which seeds its
        random choices; None: a held-out clip, which is always the same.
      repeat: how often a held-out clip has come before; it seeds the mask.
    """
    for index in candidates:
      # A new generator, so that a clip does not depend on those that failed.
      key = [0, index, repeat] if position is None else [self.seed, position]
      rng = np.random.default_rng(key)
      try:
        video = self.source.clip(index, None if position is None else rng)
      except UnreadableClip:
        continue
      captions = self.source.captions(index)
      which = 0 if position is None else rng.integers(len(captions))
      sample = {"video": video, "caption": captions[which], "index": index}
      if self.masks:
        sample["mask"] = self.masks.draw(rng, video.shape[:3])
      return sample
    raise UserError(
      "data source",
      "has no readable clip of this shape left",
      "see the data report for the reasons",
    )


def batches(
  loader: Loader,
  *,
  batch_size: int,
  start_step: int = 0,
  num_threads: int | None = None,
  num_workers: int = 0,
  places: Sequence[int] | None = None,
  finish: Callable[[Batch], Any] = lambda batch: batch,
) -> Iterator[Any]:
  """Yields this host's part of batches without end, and prefetches them.

  Closing or deleting the generator ends its threads and processes.

  Args:
    loader: of the clips.
    batch_size: global, over all hosts.
    start_step: the step of the first batch.
    num_threads: that load clips; None: by the number of cores.
    num_workers: processes that load whole batches in place of the threads,
      for sources that hold the GIL; 0: none.
    places: indices in the batch of the clips that this host loads; None: all.
    finish: postprocesses each batch, in a thread.
  """
  if batch_size < 1:
    raise UserError(
      f"batch_size={batch_size}", "is too small", "give 1 or more"
    )
  clips = _Clips(
    loader=loader,
    order=ClipOrder(loader.source.groups, batch_size, loader.seed),
    first_step=start_step,
    places=tuple(range(batch_size) if places is None else places),
    batch_size=batch_size,
  )
  if num_workers:
    make = functools.partial(_batch, clips)
    return map_in_processes(make, finish, num_workers, _AHEAD)
  threads = num_threads or min(16, max(2, os.cpu_count() or 2))
  return _load_in_threads(clips, threads, finish)


def _batch(clips: "_Clips", number: int) -> Batch:
  local = len(clips.places)
  first = number * local
  return _collate([clips[k] for k in range(first, first + local)])


def _load_in_threads(
  clips: "_Clips", threads: int, finish: Callable[[Batch], Any]
) -> Iterator[Any]:
  local = len(clips.places)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(_AHEAD * local, threads)
  )
  data = grain.MapDataset.source(clips).to_iter_dataset(options)
  data = data.batch(local, batch_fn=_collate).map(finish)
  iterator = iter(
    grain.experimental.ThreadPrefetchIterDataset(
      data, prefetch_buffer_size=_AHEAD
    )
  )
  try:
    yield from iterator
  finally:
    iterator.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clips:
  """The sequence of all clips that one host loads, as a source for grain."""

  loader: Loader
  order: ClipOrder
  first_step: int
  places: tuple[int, ...]
  batch_size: int

  def __len__(self) -> int:
    return sys.maxsize  # Endless.

  def __getitem__(self, number: int) -> Batch:
    step, k = divmod(number, len(self.places))
    step, place = step + self.first_step, self.places[k]
    candidates = self.order.candidates(step, place)
    with self.loader.timer.timing():
      return self.loader.load(candidates, step * self.batch_size + place)

  def __repr__(self) -> str:
    return f"clips of {type(self.loader.source).__name__}"


def _collate(samples: Sequence[Batch]) -> Batch:
  columns = {name: [s[name] for s in samples] for name in samples[0]}
  stack = lambda name, v: v if name == "caption" else np.stack(v)
  return {name: stack(name, values) for name, values in columns.items()}


def held_out_batches(
  loader: Loader,
  size: int,
  batch_size: int,
  places: Sequence[int] | None = None,
) -> list[tuple[Batch, int]]:
  """The first `size` clips in batches, the same ones every time.

  A smaller source repeats them with other masks. For `places`, see `batches`.

  Returns:
    Pairs of a batch and the number of its clips that count; the last batch of
    each shape is padded with clips that do not.
  """
  made = []
  number = len(loader.source)
  chosen = [(k % number, k // number) for k in range(size)]
  for group in loader.source.groups:
    place = {index: k for k, index in enumerate(group.indices)}
    members = list(place)
    here = [(index, repeat) for index, repeat in chosen if index in place]
    for first in range(0, len(here), batch_size):
      part = here[first : first + batch_size]
      padded = part + [part[-1]] * (batch_size - len(part))
      own = padded if places is None else [padded[k] for k in places]
      samples = [
        # An unreadable clip is replaced by the next one of its shape.
        loader.load(
          members[place[index] :] + members[: place[index]],
          position=None,
          repeat=repeat,
        )
        for index, repeat in own
      ]
      made.append((_collate(samples), len(part)))
  return made
