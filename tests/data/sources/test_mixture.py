"""Videos and pictures in one run."""

import numpy as np
import pytest

from lumiere_jax.data.loader import Loader, Plan, batches
from lumiere_jax.data.sources.base import Group
from lumiere_jax.data.sources.mixture import Mix


class Shapes:
  """Clip i of group g has frames[g] frames, filled with i."""

  def __init__(self, name, **counts):
    self.name = name
    self.counts = {int(key[1:]): count for key, count in counts.items()}
    self.frames = [t for t, n in self.counts.items() for _ in range(n)]

  def __len__(self):
    return len(self.frames)

  @property
  def groups(self):
    frames = np.array(self.frames)
    return [
      Group(indices=np.flatnonzero(frames == t).tolist()) for t in self.counts
    ]

  def captions(self, index):
    return (f"{self.name} {index}",)

  def clip(self, index, rng=None):
    return np.full((self.frames[index], 2, 2, 3), index, np.uint8)


def test_the_second_follows_the_first():
  mix = Mix(Shapes("video", t8=3, t4=2), Shapes("picture", t1=4), 0.2)
  assert len(mix) == 9
  assert [list(g.indices) for g in mix.groups] == [
    [0, 1, 2],
    [3, 4],
    [5, 6, 7, 8],
  ]
  assert mix.captions(4) == ("video 4",)
  assert mix.captions(5) == ("picture 0",)
  assert mix.clip(4).shape == (4, 2, 2, 3)
  assert mix.clip(8).shape == (1, 2, 2, 3)
  assert mix.clip(8).max() == 3


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
  first = Shapes("video", **videos)
  mix = Mix(first, Shapes("picture", **pictures), share)
  plan = Plan(mix.groups, batch_size=16, seed=0)
  steps = 4000
  taken = [next(plan.candidates(k, 0)) >= len(first) for k in range(steps)]
  assert np.mean(taken) == pytest.approx(share, abs=0.05)


def test_groups_of_one_source_keep_their_proportion():
  mix = Mix(Shapes("video", t8=300, t4=100), Shapes("picture", t1=100), 0.5)
  plan = Plan(mix.groups, batch_size=4, seed=0)
  taken = np.array([next(plan.candidates(k, 0)) for k in range(4000)])
  long, short = (taken < 300).mean(), ((taken >= 300) & (taken < 400)).mean()
  assert long / short == pytest.approx(3, rel=0.1)


def test_batches_of_a_mix_have_one_shape():
  mix = Mix(Shapes("video", t8=6, t4=4), Shapes("picture", t1=5), 0.4)
  made = batches(Loader(source=mix, seed=0), batch_size=2, num_threads=1)
  seen = {
    batch["video"].shape[1] for batch, _ in zip(made, range(40), strict=False)
  }
  assert seen == {8, 4, 1}
