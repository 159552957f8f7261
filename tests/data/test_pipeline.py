import gc
import itertools
import threading
import time

import numpy as np
import pytest

from lumiere_jax.data.pipeline import batches, held_out_batch
from lumiere_jax.data.source import UnreadableClip
from lumiere_jax.typing import UserError


class Numbers:
  """Clip i is filled with i; its second frame is drawn from the rng."""

  def __init__(self, count, broken=()):
    self.count, self.broken = count, broken
    self.loading = set()

  def __len__(self):
    return self.count

  def caption(self, index):
    return f"clip {index}"

  def clip(self, index, rng=None):
    self.loading.add(threading.current_thread().name)
    if index in self.broken:
      raise UnreadableClip(f"{index} is broken")
    video = np.full((2, 4, 4, 3), index, np.uint8)
    video[1] = 0 if rng is None else rng.integers(256, size=(4, 4, 3))
    return video


def take(count, source, **options):
  made = batches(source, **{"batch_size": 4, "seed": 1} | options)
  return list(itertools.islice(made, count))


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    assert np.array_equal(a["video"], b["video"])
    assert np.array_equal(a["index"], b["index"])
    assert a["caption"] == b["caption"]


def indices(made):
  return np.concatenate([batch["index"] for batch in made])


def test_batches_hold_matching_clips_and_captions():
  for batch in take(5, Numbers(7)):
    assert batch["video"].shape == (4, 2, 4, 4, 3)
    assert batch["video"].dtype == np.uint8
    assert np.array_equal(batch["video"][:, 0, 0, 0, 0], batch["index"])
    assert batch["caption"] == [f"clip {i}" for i in batch["index"]]


def test_each_clip_once_in_an_epoch():
  order = indices(take(21, Numbers(7))).reshape(-1, 7)
  for epoch in order:
    assert sorted(epoch) == list(range(7))
  assert len({tuple(epoch) for epoch in order}) > 1


def test_every_clip_is_drawn_anew():
  """The same index in two epochs, or twice in a batch, is another crop."""
  made = take(6, Numbers(1))
  drawn = {video.tobytes() for batch in made for video in batch["video"]}
  assert len(drawn) == 24


def test_a_clip_is_a_function_of_seed_and_position():
  """As the module says: from (seed, p), p the position since the start."""
  batch = take(3, Numbers(5))[2]
  for place in range(4):
    rng = np.random.default_rng((1, 2 * 4 + place))
    expected = rng.integers(256, size=(4, 4, 3))
    assert np.array_equal(batch["video"][place, 1], expected)


@pytest.mark.parametrize("start", [1, 3, 1000])
def test_starts_at_any_step(start):
  whole = take(start + 4, Numbers(7)) if start < 10 else None
  later = take(4, Numbers(7), start_step=start)
  if whole:
    assert_same(whole[start:], later)
  assert_same(take(2, Numbers(7), start_step=start + 2), later[2:])


def test_threads_change_nothing():
  one = take(10, Numbers(7), num_threads=1)
  source = Numbers(7)
  assert_same(one, take(10, source, num_threads=5))
  assert threading.main_thread().name not in source.loading


def test_seeds_differ():
  assert not np.array_equal(
    indices(take(5, Numbers(50))), indices(take(5, Numbers(50), seed=2))
  )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_each_batch(hosts):
  whole = take(5, Numbers(7))
  parts = [
    take(5, Numbers(7), process_index=k, process_count=hosts)
    for k in range(hosts)
  ]
  for step, batch in enumerate(whole):
    video = np.concatenate([part[step]["video"] for part in parts])
    assert np.array_equal(video, batch["video"])
    captions = [c for part in parts for c in part[step]["caption"]]
    assert captions == batch["caption"]


def test_a_broken_clip_gives_way_to_the_next():
  sound, broken = take(9, Numbers(6)), take(9, Numbers(6, broken={2, 3}))
  expected = [4 if i in (2, 3) else i for i in indices(sound)]
  assert indices(broken).tolist() == expected
  for batch in broken:
    assert np.array_equal(batch["video"][:, 0, 0, 0, 0], batch["index"])
    assert batch["caption"] == [f"clip {i}" for i in batch["index"]]
  # Clips that are not broken are the very same.
  for a, b in zip(sound, broken, strict=True):
    same = ~np.isin(a["index"], [2, 3])
    assert np.array_equal(a["video"][same], b["video"][same])


def test_all_broken_is_an_error():
  with pytest.raises(UserError, match="none of 3 clips can be read"):
    take(1, Numbers(3, broken={0, 1, 2}))


def test_other_errors_are_not_swallowed():
  class Faulty(Numbers):
    def clip(self, index, rng=None):
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    take(1, Faulty(3))


def loaders():
  return [t for t in threading.enumerate() if "prefetch" in t.name]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_leaves_no_threads(end):
  made = batches(Numbers(5), batch_size=4, seed=0, num_threads=3)
  next(made)
  assert loaders()
  if end == "close":
    made.close()
  del made
  gc.collect()
  deadline = time.monotonic() + 10
  while loaders() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not loaders()


def test_refuses_when_called():
  """Not when the first batch is asked for."""
  for options, message in (
    ({"batch_size": 6, "process_count": 4}, "6 does not divide among 4 hosts"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"seed": -1}, "seed is -1"),
  ):
    with pytest.raises(UserError, match=message):
      batches(Numbers(3), **{"batch_size": 4, "seed": 0} | options)
  with pytest.raises(UserError, match="empty"):
    batches(Numbers(0), batch_size=4, seed=0)


def test_held_out_batch_is_fixed():
  first = held_out_batch(Numbers(9), 3)
  assert first["index"].tolist() == [0, 1, 2]
  assert first["caption"] == ["clip 0", "clip 1", "clip 2"]
  assert not first["video"][:, 1].any()  # made without rng
  assert held_out_batch(Numbers(2), 5)["index"].tolist() == [0, 1, 0, 1, 0]
  broken = held_out_batch(Numbers(3, broken={1}), 3)
  assert broken["caption"] == ["clip 0", "clip 2", "clip 2"]
  with pytest.raises(UserError, match="empty"):
    held_out_batch(Numbers(0), 1)
