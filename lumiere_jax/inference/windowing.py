"""Videos longer or larger than a stage should see at once, and its windows."""

import dataclasses

from lumiere_jax.diffusion.guidance import check_countable
from lumiere_jax.diffusion.multidiffusion import AXES, window_starts
from lumiere_jax.stages.config import StageConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
  """How a stage sees a video that is longer than it can take at once.

  Of rows and columns of pixels it is the same.

  Attributes:
    size: frames of a window.
    overlap: least number of frames that neighbours share (2 in the paper).
    chunk: windows denoised at once; memory grows with it.
    weights: 'uniform' (the paper) or 'ramp'.
    spread: windows spread evenly, instead of the last one shifted.
  """

  size: int
  overlap: int = 2
  chunk: int = 1
  weights: str = "uniform"
  spread: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
  """How it sees frames that are larger than it should take at once.

  Attributes:
    rows: windows of rows of pixels; None: all of them.
    columns: the same of columns.
  """

  rows: Windows | None = None
  columns: Windows | None = None

  @property
  def by_axis(self) -> dict[int, Windows]:
    """Those there are, by their axis of the video."""
    both = {2: self.rows, 3: self.columns}
    return {axis: windows for axis, windows in both.items() if windows}


WHOLE = Tiles()
"""Frames that are seen as they are."""


def plan_windows(
  config: StageConfig, windows: Windows, num_frames: int
) -> tuple[int, ...]:
  """First frames of the windows of a video.

  Raises:
    UserError: the windows do not fit the video or the model.
  """
  return window_starts(
    num_frames,
    windows.size,
    windows.overlap,
    config.model.temporal_factor,
    windows.spread,
  )


def plan_tiles(
  config: StageConfig, windows: Windows, axis: int
) -> tuple[int, ...]:
  """First rows or columns of the windows of the stage's frames.

  They are multiples of its upscale: a window's low-resolution pixels are whole
  pixels of the low-resolution frame, as those of crops are in training.

  Raises:
    UserError: the windows do not fit the frames or the model.
  """
  return window_starts(
    config.video.resolution[axis - 2],
    windows.size,
    windows.overlap,
    config.model.spatial_factor,
    windows.spread,
    AXES[axis],
    config.video.upscale,
  )


def check_canvas(
  config: StageConfig,
  num_frames: int,
  windows: Windows | None,
  tiles: Tiles,
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
