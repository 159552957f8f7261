"""Windows of frames and of space, and what does not fit them."""

import dataclasses

import numpy as np
import pytest

from configs import shipped, ssr, t2i
from lumiere_jax.errors import UserError
from lumiere_jax.inference.windowing import (
  Tiles,
  Windows,
  check_canvas,
  plan_tiles,
)


def at(config, *resolution):
  video = dataclasses.replace(config.video, resolution=resolution)
  return dataclasses.replace(config, video=video)


@pytest.mark.parametrize("experiment", [ssr.FULL, ssr.TINY, shipped.SSR])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.37, 0.5, 0.77])
def test_tiles_lie_on_pixels_of_the_low_resolution(experiment, share):
  """As crops do in training; and no overlap falls short."""
  factor, side = experiment.upscale, experiment.data.resolution[0]
  overlap = round(side * share)
  windows = Windows(size=side, overlap=overlap)
  for more in (1, 3, 10, 51):
    wide = side + more * factor
    config = at(experiment.sampling, wide, wide)
    for axis in (2, 3):
      starts = plan_tiles(config, windows, axis)
      assert starts[0] == 0 and starts[-1] == wide - side
      assert not any(start % factor for start in starts)
      assert np.diff(starts).max() <= side - overlap


def test_tiles_of_a_base_start_anywhere():
  config = at(t2i.TINY.sampling, 16, 23)
  windows = Windows(size=16, overlap=11)
  assert plan_tiles(config, windows, 3) == (0, 5, 7)


def test_too_large_an_overlap_is_an_error_before_sampling():
  config = at(shipped.SSR.sampling, 128, 192)
  tiles = Tiles(columns=Windows(size=128, overlap=126))
  with pytest.raises(UserError, match=r"overlap of 126 columns.*from 0 to 124"):
    check_canvas(config, 16, None, tiles)
