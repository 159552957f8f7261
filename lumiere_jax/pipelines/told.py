"""What a task tells the cascade besides the text, and given pixels."""

from collections.abc import Callable
import dataclasses

import einops
from jaxtyping import Bool, Float, UInt8
import numpy as np
from scipy import ndimage

from lumiere_jax.typing import UserError, Video

Clip = UInt8[np.ndarray, "t h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
  """Pixels that are given to a conditional model (Lumiere, section 4.2).

  Attributes:
    video: (t, h, w, 3) at the resolution of the finished video; what is not
      given is not looked at, unless an edge is feathered into it.
    mask: (t, h, w) True where pixels are given.
  """

  video: Clip
  mask: Bool[np.ndarray, "t h w"]

  def at(
    self, resolution: tuple[int, int]
  ) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w 1"]]:
    """Video in [-1, 1] and mask of a stage that works with fewer pixels.

    Each pixel there is the mean of several here, given if all of them are.
    """
    i, j = (
      here // there
      for here, there in zip(self.mask.shape[1:], resolution, strict=True)
    )
    video = einops.reduce(
      self.video.astype(np.float32) / 127.5 - 1.0,
      "t (h i) (w j) c -> t h w c",
      "mean",
      i=i,
      j=j,
    )
    mask = einops.reduce(self.mask, "t (h i) (w j) -> t h w 1", "all", i=i, j=j)
    return video, mask.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
  """What the stages are told besides the text.

  Attributes:
    given: pixels for a conditional base.
    start: (t, h, w, 3) video that the base starts from in place of noise, as
      large as the finished one (SDEdit).
    strength: in (0, 1], the schedule time of the noise that is put on it.
    low: (b, t, h, w, 3) in about [-1, 1], in place of what the base makes.
    segment: number of a part of a long video: it has noise of its own.
  """

  given: Given | None = None
  start: Clip | None = None
  strength: float = 1.0
  low: Video | None = None
  segment: int = 0


NOTHING = Told()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
  """How far sampling is.

  Attributes:
    stage: 'base' or 'ssr'.
    done: steps taken.
    total: steps of the stage.
    canvas: (b, t, h, w, 3) as it stands, noise and all.
  """

  stage: str
  done: int
  total: int
  canvas: Video


Watch = Callable[[Progress], None]
"""Called after every few steps; what it raises stops the sampling."""


def composite(
  made: UInt8[np.ndarray, "b t h w 3"], given: Given, feather: int = 0
) -> UInt8[np.ndarray, "b t h w 3"]:
  """Made videos with the given pixels put back, to the last bit.

  Args:
    made: what was sampled.
    given: what was given.
    feather: pixels over which made ones fade into given ones; they lie on the
      made side, where `given.video` has to show what it goes on into.

  Raises:
    UserError: a negative edge.
  """
  if feather < 0:
    raise UserError(f"--feather={feather} must be at least 0")
  share = _share(given.mask, feather)[..., None]
  faded = share * given.video.astype(np.float32) + (1 - share) * made
  mixed = np.round(faded).astype(np.uint8)
  return np.where(given.mask[..., None], given.video, mixed)


def _share(
  mask: Bool[np.ndarray, "t h w"], feather: int
) -> Float[np.ndarray, "t h w"]:
  """Of given pixels 1, falling to 0 over `feather` pixels beyond them."""
  if not feather:
    return mask.astype(np.float32)
  distances = np.stack(
    [
      ndimage.distance_transform_edt(~frame)
      if frame.any()
      else np.full(frame.shape, np.inf)
      for frame in mask
    ]
  )
  return np.clip(1 - distances / (feather + 1), 0, 1).astype(np.float32)
