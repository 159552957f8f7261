"""The interface of data sources: captioned clips by index."""

from collections.abc import Sequence
import dataclasses
from typing import Protocol

import numpy as np

from lumiere_jax.errors import UserError, check_choice
from lumiere_jax.media.video_reader import RESAMPLING
from lumiere_jax.typing import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Indices of clips of one shape. A batch holds clips of one group.

  The `weight` is how often they are drawn, relative to those of other groups.
  """

  indices: Sequence[int]
  weight: float = 1.0


class Source(Protocol):
  """Captioned clips."""

  def __len__(self) -> int:
    """The number of clips."""
    ...

  @property
  def groups(self) -> Sequence[Group]:
    """A partition of the clips by shape."""
    ...

  def captions(self, index: int) -> tuple[str, ...]:
    """The captions of clip `index`, at least one."""
    ...

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    """Reads clip `index`; `rng` makes all random choices.

    Without `rng` the result is always the same.

    Raises:
      UnreadableClip: the clip can no longer be read; the loader takes another.
    """
    ...


class UnreadableClip(UserError):
  """A clip that was readable when its source was opened and no longer is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
  """The shape of clips: (height, width) is in pixels; see `read_frames`."""

  num_frames: int
  fps: float
  resolution: tuple[int, int]
  resample: str = "nearest"

  def __post_init__(self):
    if self.num_frames < 1 or not self.fps > 0 or min(self.resolution) < 1:
      raise UserError(
        "clip",
        f"has {self.num_frames} frames at {self.fps} fps of {self.resolution}",
        "choose values above 0",
      )
    check_choice("resample", self.resample, RESAMPLING)

  @property
  def seconds(self) -> float:
    """Duration of a clip."""
    return self.num_frames / self.fps
