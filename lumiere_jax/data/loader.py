"""Clips to batches, in threads or processes.

Which clips a batch holds is a function of the step alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any, TypeVar

import grain
import numpy as np

from lumiere_jax.data.masks import MaskMix
from lumiere_jax.data.sources.base import Group, Source, UnreadableClip
from lumiere_jax.errors import UserError

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


T = TypeVar("T")


_make: Callable[[int], Any]  # In a worker: what it was started for.


def made_in_processes(
  make: Callable[[int], Any],
  finish: Callable[[Any], T],
  workers: int,
  ahead: int,
) -> Iterator[T]:
  """finish(make(0)), finish(make(1)), ... without end, made ahead.

  Args:
    make: runs in the workers, to which it is pickled.
    finish: runs in a thread of this process, one after the other.
    workers: how many processes.
    ahead: results that are finished, or waited for, beyond one per worker.

  Returns:
    A generator; closing it ends the workers.
  """
  pool = ProcessPoolExecutor(
    workers,
    # A fork of a process that has threads, as JAX has, can lock up.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_begin,
    initargs=(make,),
  )
  finisher = ThreadPoolExecutor(1)
  numbers = itertools.count()
  made, finished = deque(), deque()
  try:
    while True:
      while len(made) < workers + ahead:
        made.append(pool.submit(_work, next(numbers)))
      while len(finished) < ahead:
        result = made.popleft().result
        finished.append(finisher.submit(lambda r=result: finish(r())))
      yield finished.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    finisher.shutdown(wait=False, cancel_futures=True)


def _begin(make: Callable[[int], Any]) -> None:
  global _make
  _make = make
  # The trainer is told to stop, and ends its workers when it has saved.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A trainer that is killed leaves no workers behind."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _work(number: int) -> Any:
  return _make(number)


Batch = dict[str, Any]
"""video (b, t, h, w, c) uint8; caption list of b; index (b,) of the source;
where masks are asked for, mask (b, t, h, w, 1) uint8, 1 where given."""


_AHEAD = 2  # Batches that are made ready while a step is under way.


class LoadTimer:
  """How long clips take to load, in whatever threads."""

  def __init__(self):
    self._lock = threading.Lock()
    self._clips, self._seconds = 0, 0.0

  @contextlib.contextmanager
  def timing(self) -> Iterator[None]:
    """One clip is loaded in here."""
    began = time.monotonic()
    yield
    with self._lock:
      self._clips += 1
      self._seconds += time.monotonic() - began

  def take(self) -> float | None:
    """Mean seconds a clip since the last call; None: there were none."""
    with self._lock:
      clips, seconds = self._clips, self._seconds
      self._clips, self._seconds = 0, 0.0
    return seconds / clips if clips else None

  def __reduce__(self):
    """In another process it begins anew, for what is counted stays there."""
    return LoadTimer, ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
  """Loads clips of a source.

  Attributes:
    source: gives clips by index.
    seed: 0 or more.
    masks: draws a mask for each clip; None: there are none.
    pace: is told how long each clip took.
  """

  source: Source
  seed: int
  masks: MaskMix | None = None
  pace: LoadTimer = dataclasses.field(default_factory=LoadTimer)

  def __post_init__(self):
    if self.seed < 0:
      raise UserError("", f"seed is {self.seed}", "give 0 or more")
    if not len(self.source):
      raise UserError(
        "", "the data source is empty", "give it one clip or more"
      )

  def load(
    self, candidates: Iterable[int], position: int | None, turn: int = 0
  ) -> Batch:
    """The first of the candidates that can be read, as a batch without axis.

    Args:
      candidates: indices of clips.
      position: number of the clip since the start of training, from which its
        random choices follow; None: held out, always the same.
      turn: of held-out clips, which time this one comes; its mask is another.

    Raises:
      UserError: none can be read any more.
    """
    for index in candidates:
      # Anew for each, so that a clip does not depend on those that failed.
      held_out = position is None
      key = (0, index, turn) if held_out else (self.seed, position)
      rng = np.random.default_rng(key)
      try:
        video = self.source.clip(index, None if held_out else rng)
      except UnreadableClip:
        continue
      captions = self.source.captions(index)
      which = 0 if held_out else rng.integers(len(captions))
      sample = {"video": video, "caption": captions[which], "index": index}
      if self.masks:
        sample["mask"] = self.masks.draw(rng, video.shape[:3])
      return sample
    raise UserError(
      "",
      "none of these clips can be read any more",
      "see the data report for what became of the files",
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
  """Endless batches, made ready ahead of when they are asked for.

  Args:
    loader: of the clips.
    batch_size: of all hosts together.
    start_step: the step of the first batch.
    num_threads: that load clips; None: by the number of cores.
    num_workers: processes that load whole batches in place of the threads,
      for sources that hold Python's lock; 0: none.
    places: of the clips in the batch that this host has to load; None: all.
    finish: what remains to be done to a batch, also ahead, in a thread.

  Returns:
    A generator of this host's part of the batches from `start_step` on.
    Closing it, or dropping it, ends its threads.

  Raises:
    UserError: an argument cannot be used, or no clip can be read any more.
  """
  if batch_size < 1:
    raise UserError(
      "", f"batch_size {batch_size} is too small", "give 1 or more"
    )
  places = tuple(range(batch_size) if places is None else places)
  clips = _Clips(
    loader=loader,
    plan=Plan(loader.source.groups, batch_size, loader.seed),
    first_step=start_step,
    places=places,
    batch_size=batch_size,
  )
  threads = num_threads or min(16, max(2, os.cpu_count() or 2))
  if num_workers:
    make = functools.partial(_batch, clips)
    return made_in_processes(make, finish, num_workers, _AHEAD)
  return _generate(clips, threads, finish)


def _batch(clips: "_Clips", number: int) -> Batch:
  local = len(clips.places)
  first = number * local
  return _collate([clips[k] for k in range(first, first + local)])


def _generate(
  clips: "_Clips", threads: int, finish: Callable[[Batch], Any]
) -> Iterator[Any]:
  local = len(clips.places)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(_AHEAD * local, threads)
  )
  data = grain.MapDataset.source(clips).to_iter_dataset(options)
  data = data.batch(local, batch_fn=_collate).map(finish)
  data = grain.experimental.ThreadPrefetchIterDataset(
    data, prefetch_buffer_size=_AHEAD
  )
  iterator = iter(data)
  try:
    yield from iterator
  finally:
    iterator.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clips:
  """All clips that one host loads, in order: a source for grain."""

  loader: Loader
  plan: Plan
  first_step: int
  places: tuple[int, ...]
  batch_size: int

  def __len__(self) -> int:
    return sys.maxsize  # never ends

  def __getitem__(self, number: int) -> Batch:
    step, k = divmod(number, len(self.places))
    step, place = step + self.first_step, self.places[k]
    candidates = self.plan.candidates(step, place)
    with self.loader.pace.timing():
      return self.loader.load(candidates, step * self.batch_size + place)

  def __repr__(self) -> str:
    return f"clips of {type(self.loader.source).__name__}"


def _collate(samples: Sequence[Batch]) -> Batch:
  join = {"caption": list, "index": np.array}
  return {
    name: join.get(name, np.stack)([sample[name] for sample in samples])
    for name in samples[0]
  }


def held_out_batches(
  loader: Loader,
  size: int,
  batch_size: int,
  places: Sequence[int] | None = None,
) -> list[tuple[Batch, int]]:
  """The first `size` clips in batches, the same ones every time.

  Args:
    loader: of the held-out clips.
    size: how many clips; of a smaller source they come again, under other
      masks.
    batch_size: of each batch.
    places: see `batches`.

  Returns:
    Pairs of a batch and how many of its clips count; the last batch of each
    shape is filled up with clips that do not.

  Raises:
    UserError: no clip can be read any more.
  """
  made = []
  number = len(loader.source)
  chosen = [(k % number, k // number) for k in range(size)]
  for group in loader.source.groups:
    members = list(group.indices)
    inside = set(members)
    here = [(index, turn) for index, turn in chosen if index in inside]
    for first in range(0, len(here), batch_size):
      part = here[first : first + batch_size]
      filled = part + [part[-1]] * (batch_size - len(part))
      own = filled if places is None else [filled[k] for k in places]
      samples = [
        loader.load(_from(members, index), position=None, turn=turn)
        for index, turn in own
      ]
      made.append((_collate(samples), len(part)))
  return made


def _from(members: Sequence[int], index: int) -> Iterator[int]:
  """All members, in a circle that begins at `index`."""
  start = members.index(index)
  yield from members[start:]
  yield from members[:start]
