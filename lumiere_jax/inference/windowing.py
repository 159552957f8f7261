"""Windows over frames, rows and columns that exceed a stage's own size."""

import dataclasses
import math

import numpy as np

from lumiere_jax.diffusion.guidance import check_countable
from lumiere_jax.diffusion.multidiffusion import AXES, window_starts
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
  """Windows over the pixels of a frame.

  Attributes:
    rows: windows over rows; None: all rows at once.
    columns: windows over columns; None: all columns at once.
  """

  rows: Windows | None = None
  columns: Windows | None = None

  @property
  def by_axis(self) -> dict[int, Windows]:
    """The windows by their axis of the video."""
    both = {2: self.rows, 3: self.columns}
    return {axis: windows for axis, windows in both.items() if windows}


WHOLE = Tiles()
"""Frames without spatial windows."""


def plan_windows(
  config: StageConfig, windows: Windows, num_frames: int
) -> tuple[int, ...]:
  """First frames of the windows of a video."""
  return window_starts(
    num_frames, windows.size, windows.overlap, config.model.temporal_factor
  )


def plan_tiles(
  config: StageConfig, windows: Windows, axis: int
) -> tuple[int, ...]:
  """First rows or columns of the windows of the stage's frames.

  They are multiples of its upscale, so that a window starts at a whole pixel of
  the low-resolution frame, as crops do in training.
  """
  return window_starts(
    config.video.resolution[axis - 2],
    windows.size,
    windows.overlap,
    config.model.spatial_factor,
    unit=AXES[axis],
    grid=config.video.upscale,
  )


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


def check_canvas(
  config: StageConfig, num_frames: int, windows: Windows | None, tiles: Tiles
) -> None:
  """Raises a UserError where the video, or its windows, do not fit."""
  if windows:
    plan_windows(config, windows, num_frames)
  for axis, part in tiles.by_axis.items():
    plan_tiles(config, part, axis)
  height, width = config.video.resolution
  check_countable(num_frames * height * width * 3)
  config.model.check_video(
    windows.size if windows else num_frames,
    tiles.rows.size if tiles.rows else height,
    tiles.columns.size if tiles.columns else width,
  )
