"""Windows on many devices give what they give on one.

Whatever the numbers of windows, frames and devices, and in however many hops
the overlap has to come.
"""

import numpy as np
import pytest

from lumiere_jax.diffusion.sharded_multidiffusion import divide
from lumiere_jax.errors import UserError

CASES = [  # starts, window, frames
  ((0, 14, 28, 42, 56, 64), 16, 80),
  ((0, 2, 4, 6, 8), 8, 16),
  ((0,), 8, 8),
  ((0, 3, 4), 6, 10),
]


@pytest.mark.parametrize("devices", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("starts, window, frames", CASES)
def test_every_window_and_frame_has_one_owner(starts, window, frames, devices):
  division = divide(starts, window, frames, devices)
  assert sum(division.windows, ()) == starts
  assert sum(division.counts) == frames
  counts = [len(own) for own in division.windows]
  assert max(counts) - min(counts) <= 1
  canvas = division.frames
  assert canvas.shape == (devices * division.size,)
  assert np.array_equal(canvas[division.places], np.arange(frames))


@pytest.mark.parametrize("devices", [2, 3, 5])
@pytest.mark.parametrize("starts, window, frames", CASES)
def test_only_overlap_frames_are_communicated(starts, window, frames, devices):
  """Worked out by hand, frame by frame."""
  division = divide(starts, window, frames, devices)
  owner = division.places // division.size
  needed = {}
  for k, own in enumerate(division.windows):
    for frame in {f for start in own for f in range(start, start + window)}:
      if owner[frame] != k:
        hop = owner[frame] - k
        count = 1 + frame - division.first[owner[frame]]
        needed[hop] = max(needed.get(hop, 0), count)
  assert dict(division.hops) == needed


def test_windows_of_the_paper_on_four_devices():
  starts = (0, 14, 28, 42, 56, 64)
  assert dict(divide(starts[:4], 16, 58, 4).hops) == {1: 2}


def test_windows_out_of_order_are_refused():
  with pytest.raises(UserError, match="not in order"):
    divide((4, 0), 4, 8, 2)
