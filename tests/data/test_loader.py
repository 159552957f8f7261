import gc
import itertools
import threading
import time

import numpy as np
import pytest

from lumiere_jax.data.loader import Loader, batches, held_out_batches
from lumiere_jax.data.masks import MaskMix
from lumiere_jax.data.sources.base import Group, UnreadableClip
from lumiere_jax.errors import UserError


class Numbers:
  """Clip i is filled with i; its second frame is drawn from the rng."""

  def __init__(self, count, broken=()):
    self.count, self.broken = count, broken
    self.loading = set()

  def __len__(self):
    return self.count

  @property
  def groups(self):
    return [Group(indices=range(self.count))]

  def captions(self, index):
    return (f"clip {index}",)

  def clip(self, index, rng=None):
    self.loading.add(threading.current_thread().name)
    if index in self.broken:
      raise UnreadableClip(f"{index} is broken")
    video = np.full((2, 4, 4, 3), index, np.uint8)
    video[1] = 0 if rng is None else rng.integers(256, size=(4, 4, 3))
    return video


def make(source, seed=1, masks=None, **options):
  loader = Loader(source=source, seed=seed, masks=masks)
  return batches(loader, **{"batch_size": 4} | options)


def take(count, source, **options):
  return list(itertools.islice(make(source, **options), count))


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    assert np.array_equal(a["video"], b["video"])
    assert np.array_equal(a["index"], b["index"])
    assert a["caption"] == b["caption"]


def indices(made):
  return np.concatenate([batch["index"] for batch in made])


def assert_holds(batch):
  """Clips, indices and captions belong together."""
  assert np.array_equal(batch["video"][:, 0, 0, 0, 0], batch["index"])
  assert batch["caption"] == [f"clip {i}" for i in batch["index"]]


def test_batches_hold_matching_clips_and_captions():
  for batch in take(5, Numbers(7)):
    assert batch["video"].shape == (4, 2, 4, 4, 3)
    assert batch["video"].dtype == np.uint8
    assert_holds(batch)


def test_each_clip_once_in_an_epoch():
  order = indices(take(21, Numbers(7))).reshape(-1, 7)
  for epoch in order:
    assert sorted(epoch) == list(range(7))
  assert len({tuple(epoch) for epoch in order}) > 1


def test_every_repetition_is_another_crop():
  made = take(6, Numbers(1))
  drawn = {video.tobytes() for batch in made for video in batch["video"]}
  assert len(drawn) == 24


def test_a_clip_is_a_function_of_seed_and_position():
  batch = take(3, Numbers(5))[2]
  for place in range(4):
    rng = np.random.default_rng((1, 2 * 4 + place))
    expected = rng.integers(256, size=(4, 4, 3))
    assert np.array_equal(batch["video"][place, 1], expected)


def test_starts_at_any_step():
  whole = take(7, Numbers(7))
  for start in (1, 3):
    assert_same(whole[start:], take(7 - start, Numbers(7), start_step=start))
  later = take(4, Numbers(7), start_step=1000)
  assert_same(later[2:], take(2, Numbers(7), start_step=1002))


def test_threads_change_nothing():
  one, source = take(10, Numbers(7), num_threads=1), Numbers(7)
  assert_same(one, take(10, source, num_threads=5))
  assert threading.main_thread().name not in source.loading


def test_seeds_differ():
  assert not np.array_equal(
    indices(take(5, Numbers(50))), indices(take(5, Numbers(50), seed=2))
  )


@pytest.mark.parametrize("hosts", [[(0, 1), (2, 3)], [(3, 0), (2,), (1,)]])
def test_hosts_share_each_batch(hosts):
  whole = take(5, Numbers(7))
  parts = [take(5, Numbers(7), places=places) for places in hosts]
  for step, batch in enumerate(whole):
    for places, part in zip(hosts, parts, strict=True):
      video = batch["video"][list(places)]
      assert np.array_equal(part[step]["video"], video)
      captions = [batch["caption"][place] for place in places]
      assert part[step]["caption"] == captions
  # In an epoch each clip is read once, by one host.
  read = [i for p in hosts for i in indices(take(2, Numbers(8), places=p))]
  assert sorted(read) == list(range(8))


def test_the_next_clip_replaces_a_broken_one():
  sound, broken = take(9, Numbers(6)), take(9, Numbers(6, broken={2, 3}))
  order = indices(sound).reshape(-1, 6).tolist()
  # The next in the order of the epoch that can be read.
  later = lambda epoch, k: next(i for i in epoch[k:] + epoch if i not in (2, 3))
  expected = [later(epoch, k) for epoch in order for k in range(6)]
  assert indices(broken).tolist() == expected
  for batch in broken:
    assert_holds(batch)
  # Clips that are not broken are the very same.
  for a, b in zip(sound, broken, strict=True):
    same = ~np.isin(a["index"], [2, 3])
    assert np.array_equal(a["video"][same], b["video"][same])


def test_errors_of_clips():
  with pytest.raises(UserError, match="no readable clip"):
    take(1, Numbers(3, broken={0, 1, 2}))

  class Faulty(Numbers):
    def clip(self, index, rng=None):
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    take(1, Faulty(3))


def loaders():
  return [t for t in threading.enumerate() if "prefetch" in t.name]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_leaves_no_threads(end):
  made = make(Numbers(5), num_threads=3)
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


@pytest.mark.parametrize(
  ("count", "options", "field"),
  [
    (3, {"batch_size": 0}, "batch_size=0"),
    (3, {"seed": -1}, "seed=-1"),
    (0, {}, "data source"),
  ],
)
def test_errors_are_raised_before_the_first_batch(count, options, field):
  with pytest.raises(UserError) as error:
    make(Numbers(count), **options)
  assert error.value.field == field


def held_out(source, size, **options):
  loader = Loader(source=source, seed=0, **options)
  return held_out_batches(loader, size, batch_size=2)


def test_held_out_batches_are_fixed():
  (first, whole), (second, real) = held_out(Numbers(9), 3)
  assert first["index"].tolist() == [0, 1]
  assert first["caption"] == ["clip 0", "clip 1"]
  assert not first["video"][:, 1].any()  # Made without rng.
  assert second["index"].tolist() == [2, 2]
  assert (whole, real) == (2, 1)  # The padding does not count.
  again = [b["index"].tolist() for b, _ in held_out(Numbers(2), 5)]
  assert again == [[0, 1], [0, 1], [0, 0]]
  broken = held_out(Numbers(3, broken={1}), 2)[0][0]
  assert broken["caption"] == ["clip 0", "clip 2"]


def test_a_repeated_held_out_clip_has_another_mask():
  masks = MaskMix.parse("random_boxes")
  twice = [held_out(Numbers(1), 2, masks=masks)[0][0]["mask"] for _ in range(2)]
  assert not np.array_equal(twice[0][0], twice[0][1])
  np.testing.assert_array_equal(*twice)


class Shapes(Numbers):
  """Clips of two shapes; the first five are short."""

  weights = (1.0, 1.0)

  @property
  def groups(self):
    parts = range(5), range(5, self.count)
    weighted = zip(parts, self.weights, strict=True)
    return [Group(indices=part, weight=weight) for part, weight in weighted]

  def clip(self, index, rng=None):
    video = super().clip(index, rng)
    return video[:1] if index < 5 else video


def test_batches_have_one_shape_and_rounds_all_clips():
  """In shuffled rounds of 2 + 4 steps, which resume anywhere."""
  made = take(30, Shapes(21))
  lengths = [batch["video"].shape[1] for batch in made]
  for length, members in ((1, range(5)), (2, range(5, 21))):
    parts = [b for b, t in zip(made, lengths, strict=True) if t == length]
    stream = indices(parts)
    assert len(stream) == 5 * 4 * {1: 2, 2: 4}[length]
    for epoch in stream.reshape(-1, len(members)):
      assert sorted(epoch) == list(members)
  assert len({tuple(lengths[k : k + 6]) for k in range(0, 30, 6)}) > 1
  for start in (1, 5, 6, 17):
    assert_same(made[start : start + 3], take(3, Shapes(21), start_step=start))


def test_weights_set_the_share_of_steps():
  class Weighted(Shapes):
    weights = (6.0, 1.0)  # 12 steps of the first group, 4 of the second.

  lengths = [b["video"].shape[1] for b in take(32, Weighted(21))]
  assert (lengths.count(1), lengths.count(2)) == (24, 8)


def test_one_of_several_captions_is_drawn():
  class Several(Numbers):
    def captions(self, index):
      return tuple(f"{index}, caption {k}" for k in range(3))

  drawn = lambda: [c for b in take(30, Several(2)) for c in b["caption"]]
  first = drawn()
  assert len(set(first)) == 6
  assert first == drawn()
  batch, _ = held_out(Several(2), 2)[0]
  assert batch["caption"] == ["0, caption 0", "1, caption 0"]


def test_masks_come_with_clips():
  masks = MaskMix.parse("first_frame random_boxes")
  made = take(6, Numbers(7), masks=masks)
  assert made[0]["mask"].shape == (4, 2, 4, 4, 1)
  assert len({mask.tobytes() for batch in made for mask in batch["mask"]}) > 3
  for a, b in zip(made, take(6, Numbers(7), masks=masks), strict=True):
    assert np.array_equal(a["mask"], b["mask"])
  assert_same(made, take(6, Numbers(7)))  # Masks do not change the clips.
