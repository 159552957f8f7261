"""Clips to batches, in threads: what comes is a function of the step alone.

Clip number p since the start of training (step * batch size + place in the
batch) is taken from a permutation of the source that is new in each epoch, and
draws its random choices from (seed, p). So a run that is resumed, or that runs
on another number of hosts, sees the clips it would have seen.
"""

from collections.abc import Iterator, Sequence
import functools
import os
import sys
from typing import Any

import grain
import numpy as np

from lumiere_jax.data.source import Source, UnreadableClip
from lumiere_jax.typing import UserError

Batch = dict[str, Any]
"""video (b, t, h, w, c) uint8; caption list of b; index (b,) of the source."""
# Keeps the seeds of permutations apart from those of clips.
_PERMUTATION = 1


def batches(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  num_threads: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Endless batches of `source`, each clip once in an epoch.

  Args:
    source: gives clips by index.
    batch_size: of all hosts together.
    seed: 0 or more.
    start_step: the step of the first batch.
    num_threads: that load clips; None: by the number of cores.
    process_index: which host this is.
    process_count: how many hosts share each batch; each gets the clips that
      stand at its own place in the batch.

  Returns:
    A generator of this host's part of the batches from `start_step` on.
    Closing it, or dropping it, ends its threads.

  Raises:
    UserError: an argument cannot be used, or no clip can be read any more.
  """
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"batch_size {batch_size} does not divide among {process_count} hosts; "
      f"give a multiple of {process_count}"
    )
  if seed < 0:
    raise UserError(f"seed is {seed}; give 0 or more")
  _require_clips(source)
  local = batch_size // process_count
  clips = _Clips(
    source=source,
    seed=seed,
    first=start_step * batch_size + process_index * local,
    local=local,
    stride=batch_size,
  )
  threads = num_threads or min(16, max(2, os.cpu_count() or 2))
  return _generate(clips, local, threads)


def _generate(clips: "_Clips", local: int, threads: int) -> Iterator[Batch]:
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2 * local, threads)
  )
  data = grain.MapDataset.source(clips).to_iter_dataset(options)
  iterator = iter(data.batch(local, batch_fn=_collate))
  try:
    yield from iterator
  finally:
    iterator.close()


class _Clips:
  """All clips that one host loads, in order: a source for grain."""

  def __init__(
    self, *, source: Source, seed: int, first: int, local: int, stride: int
  ):
    self._source, self._seed = source, seed
    self._first, self._local, self._stride = first, local, stride

  def __len__(self) -> int:
    return sys.maxsize  # never ends

  def __getitem__(self, number: int) -> Batch:
    step, place = divmod(number, self._local)
    position = self._first + step * self._stride + place
    epoch, within = divmod(position, len(self._source))
    index = _permutation(self._seed, epoch, len(self._source))[within]
    return _load(self._source, int(index), (self._seed, position))

  def __repr__(self) -> str:
    return f"clips of {type(self._source).__name__}"


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
  rng = np.random.default_rng((seed, epoch, _PERMUTATION))
  return rng.permutation(length)


def _load(source: Source, index: int, seed: tuple[int, int] | None) -> Batch:
  """Clip `index`, or the next that can be read."""
  for candidate in range(index, index + len(source)):
    candidate %= len(source)
    rng = None if seed is None else np.random.default_rng(seed)
    try:
      video = source.clip(candidate, rng)
    except UnreadableClip:
      continue
    caption = source.caption(candidate)
    return {"video": video, "caption": caption, "index": candidate}
  raise UserError(
    f"none of {len(source)} clips can be read any more; "
    "see the data report for what became of the files"
  )


def _collate(samples: Sequence[Batch]) -> Batch:
  return {
    "video": np.stack([sample["video"] for sample in samples]),
    "caption": [sample["caption"] for sample in samples],
    "index": np.array([sample["index"] for sample in samples]),
  }


def _require_clips(source: Source) -> None:
  if not len(source):
    raise UserError("the data source is empty; give it one clip or more")


def held_out_batch(source: Source, size: int) -> Batch:
  """The first `size` clips, the same ones every time.

  Of a smaller source they come again from the first on.

  Raises:
    UserError: the source is empty, or no clip can be read any more.
  """
  _require_clips(source)
  return _collate([_load(source, k % len(source), None) for k in range(size)])
