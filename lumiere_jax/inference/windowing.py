"""Windows over frames, rows and columns that exceed a stage's own size."""

import dataclasses
import math

import numpy as np

from lumiere_jax.stages.config import StageConfig
from lumiere_jax.typing import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
  """Windows over the frames of a video; also over rows or columns of pixels.

  Attributes:
    size: frames of a window.
    overlap: minimum number of frames that neighbours share (2 in the paper).
    chunk: windows denoised at once; memory grows with it.
    weights: 'uniform' (the paper) or 'ramp'.
  """

  size: int
  overlap: int = 2
  chunk: int = 1
  weights: str = "uniform"


def pad_to_windows(config: StageConfig, video: Clip) -> Clip:
  """Repeats edges of a low-resolution video until super-resolution takes it.

  A side that fits into one window has to be a multiple of the model's factor; a
  larger one is covered by windows.
  """
  upscale, model = config.video.upscale, config.model
  shares = (1, upscale, upscale)
  windows = (config.video.num_frames, *config.video.resolution)
  factors = (model.temporal_factor, *[model.spatial_factor] * 2)
  padding = [(0, 0)] * 4
  for axis, (share, window, factor) in enumerate(
    zip(shares, windows, factors, strict=True)
  ):
    side = video.shape[axis] * share
    if side <= window:
      side = math.ceil(side / factor) * factor
    padding[axis] = (0, math.ceil(side / share) - video.shape[axis])
  return np.pad(video, padding, "edge")
