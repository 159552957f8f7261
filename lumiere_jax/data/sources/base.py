"""What every data source gives: captioned clips, by index."""

from collections.abc import Sequence
import dataclasses
from typing import Protocol

import numpy as np

from lumiere_jax.errors import UserError, check_choice
from lumiere_jax.media.video_reader import RESAMPLING
from lumiere_jax.typing import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Clips of one shape: a batch is taken from one group.

  Attributes:
    indices: of the clips in their source.
    weight: how often they come; 1 is once while every other group of weight 1
      comes once.
  """

  indices: Sequence[int]
  weight: float = 1.0


class Source(Protocol):
  """Captioned clips."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  @property
  def groups(self) -> Sequence[Group]:
    """The clips by their shape, each in one group."""
    ...

  def captions(self, index: int) -> tuple[str, ...]:
    """What clip `index` shows, said in one way or several."""
    ...

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    """Clip `index`; any random choice in it is drawn from `rng`.

    Without `rng` it is always the same clip.

    Raises:
      UnreadableClip: it has become unreadable; another may take its place.
    """
    ...


class UnreadableClip(UserError):
  """A clip that could be read once and cannot any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
  """The shape of clips.

  Attributes:
    num_frames: t.
    fps: frames per second.
    resolution: (height, width) in pixels.
    resample: how frames are taken from videos of another rate, 'nearest' or
      'blend'; see `read_clip`.

  Raises:
    UserError: a value that no clip can have.
  """

  num_frames: int
  fps: float
  resolution: tuple[int, int]
  resample: str = "nearest"

  def __post_init__(self):
    if self.num_frames < 1 or not self.fps > 0 or min(self.resolution) < 1:
      raise UserError(
        "",
        f"clips of {self.num_frames} frames at {self.fps} fps, "
        f"{self.resolution}: all must be above 0",
      )
    check_choice("resample", self.resample, RESAMPLING)

  @property
  def seconds(self) -> float:
    """How long a clip shows."""
    return self.num_frames / self.fps
