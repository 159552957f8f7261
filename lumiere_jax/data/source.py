"""What every data source gives: captioned clips, by index."""

import dataclasses
from typing import Protocol

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.typing import UserError

Clip = UInt8[np.ndarray, "t h w 3"]


class Source(Protocol):
  """Captioned clips, all of one size."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  def caption(self, index: int) -> str:
    """What clip `index` shows."""
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
  """The size of all clips of a source.

  Attributes:
    num_frames: t.
    fps: frames per second.
    resolution: (height, width) in pixels.

  Raises:
    UserError: a value that no clip can have.
  """

  num_frames: int
  fps: float
  resolution: tuple[int, int]

  def __post_init__(self):
    if self.num_frames < 1 or not self.fps > 0 or min(self.resolution) < 1:
      raise UserError(
        f"clips of {self.num_frames} frames at {self.fps} fps, "
        f"{self.resolution}: all must be above 0"
      )

  @property
  def seconds(self) -> float:
    """How long a clip shows."""
    return self.num_frames / self.fps
