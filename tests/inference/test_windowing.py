"""Windows of frames and of space, and what does not fit them."""

import dataclasses

import numpy as np
import pytest

from configs import shipped, ssr, t2i
from lumiere_jax.diffusion.samplers import DDIM
from lumiere_jax.errors import UserError
from lumiere_jax.inference.stage_sampler import Program
from lumiere_jax.inference.windowing import Windows


def tiled(config, height, width, **windows):
  video = dataclasses.replace(config.video, resolution=(height, width))
  config = dataclasses.replace(config, video=video)
  return Program(config=config, rule=DDIM(), num_frames=16, **windows)


@pytest.mark.parametrize("experiment", [ssr.FULL, ssr.TINY, shipped.SSR])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.37, 0.5, 0.77])
def test_tiles_lie_on_pixels_of_the_low_resolution(experiment, share):
  """As crops do in training; and no overlap falls short."""
  factor, side = experiment.upscale, experiment.data.resolution[0]
  overlap = round(side * share)
  tiles = Windows(size=side, overlap=overlap)
  for more in (1, 3, 10, 51):
    wide = side + more * factor
    program = tiled(experiment.sampling, wide, wide, rows=tiles, columns=tiles)
    for axis in (2, 3):
      starts = program.starts(axis)
      assert starts[0] == 0 and starts[-1] == wide - side
      assert not any(start % factor for start in starts)
      assert np.diff(starts).max() <= side - overlap


def test_tiles_of_a_base_start_anywhere():
  columns = Windows(size=16, overlap=11)
  program = tiled(t2i.TINY.sampling, 16, 23, columns=columns)
  assert program.starts(3) == (0, 5, 7)


def test_too_large_an_overlap_is_an_error_before_sampling():
  columns = Windows(size=128, overlap=126)
  with pytest.raises(UserError, match=r"overlap of 126 columns.*from 0 to 124"):
    tiled(shipped.SSR.sampling, 128, 192, columns=columns)
