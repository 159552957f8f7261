"""Joint training on two sources."""

import numpy as np
import pytest

from lumiere_jax.data.loader import ClipOrder
from lumiere_jax.data.sources.base import Group
from lumiere_jax.data.sources.mixture import MixtureSource


class Shapes:
  """Clip i has frames[i] frames, filled with i; `counts`: t8=3 is 3 of 8."""

  def __init__(self, name, **counts):
    self.name = name
    counts = {int(key[1:]): count for key, count in counts.items()}
    self.frames = [t for t, n in counts.items() for _ in range(n)]

  def __len__(self):
    return len(self.frames)

  @property
  def groups(self):
    frames = np.array(self.frames)
    kinds = dict.fromkeys(self.frames)
    return [Group(indices=np.flatnonzero(frames == t).tolist()) for t in kinds]

  def captions(self, index):
    return (f"{self.name} {index}",)

  def clip(self, index, rng=None):
    return np.full((self.frames[index], 2, 2, 3), index, np.uint8)


def mix(videos, pictures, share):
  return MixtureSource(
    Shapes("video", **videos), Shapes("picture", **pictures), share
  )


def test_indices_of_the_second_follow_the_first():
  source = mix({"t8": 3, "t4": 2}, {"t1": 4}, 0.2)
  assert len(source) == 9
  indices = [list(group.indices) for group in source.groups]
  assert indices == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
  assert source.captions(4) == ("video 4",)
  assert source.captions(5) == ("picture 0",)
  assert source.clip(4).shape == (4, 2, 2, 3)
  assert source.clip(8).shape == (1, 2, 2, 3)
  assert source.clip(8).max() == 3


def first_clips(source, batch_size):
  """The first clip of each of many steps."""
  order = ClipOrder(source.groups, batch_size=batch_size, seed=0)
  return np.array([next(order.candidates(k, 0)) for k in range(4000)])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(
  ("videos", "pictures"),
  [
    ({"t8": 500}, {"t1": 20_000}),
    ({"t8": 400, "t4": 100}, {"t1": 100}),
    ({"t8": 90}, {"t1": 90}),
  ],
)
def test_about_the_share_of_steps_takes_pictures(share, videos, pictures):
  taken = first_clips(mix(videos, pictures, share), batch_size=16)
  assert np.mean(taken >= sum(videos.values())) == pytest.approx(
    share, abs=0.05
  )


def test_groups_of_one_source_keep_their_proportion():
  source = mix({"t8": 300, "t4": 100}, {"t1": 100}, 0.5)
  taken = first_clips(source, batch_size=4)
  long, short = (taken < 300).mean(), ((taken >= 300) & (taken < 400)).mean()
  assert long / short == pytest.approx(3, rel=0.1)
