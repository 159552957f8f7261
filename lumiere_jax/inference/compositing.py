"""Fits users' pictures, videos and masks to a model, and puts pixels back."""

from jaxtyping import Bool, Float, UInt8
import numpy as np
from scipy import ndimage

from lumiere_jax.errors import UserError, notice, option
from lumiere_jax.media.images import fit
from lumiere_jax.media.masks import check_mask, fit_mask
from lumiere_jax.stages.conditioning import MaskedVideo
from lumiere_jax.typing import Clip


def composite(
  made: UInt8[np.ndarray, "b t h w 3"], given: MaskedVideo, feather: int = 0
) -> UInt8[np.ndarray, "b t h w 3"]:
  """Sampled videos with the given pixels put back, to the last bit.

  Over `feather` pixels, sampled pixels fade into given ones; the edge lies on
  the sampled side, where it shows `given.video`.
  """
  if feather < 0:
    raise UserError(option("feather", feather), "must be at least 0")
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
  distances = np.full(mask.shape, np.inf)
  for frame, distance in zip(mask, distances, strict=True):
    if frame.any():
      distance[:] = ndimage.distance_transform_edt(~frame)
  return np.clip(1 - distances / (feather + 1), 0, 1).astype(np.float32)


Size = tuple[int, int]
"""(height, width)."""


def picture_of_size(
  image: UInt8[np.ndarray, "h w 3"], size: Size, name: str
) -> UInt8[np.ndarray, "H W 3"]:
  """A picture resized to cover `size`, and cropped at its centre.

  Resizing is reported; `name` is that of the input.
  """
  if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
    raise UserError(
      name, f"is {image.dtype} {image.shape}", "give uint8 (height, width, 3)"
    )
  if image.shape[:2] == size:
    return image
  _tell(name, image.shape[:2], size)
  return fit(image, size)


def video_of_size(
  video: Clip, size: Size, frames: int, multiple_of: int, name: str
) -> Clip:
  """The first frames of a video, resized as in `picture_of_size`.

  At most `frames` are kept; fewer are truncated to a multiple of
  `multiple_of`.
  """
  check_video(video, name)
  kept = min(len(video), frames)
  kept -= kept % multiple_of
  if not kept:
    raise UserError(
      name, f"has {len(video)} frames", f"give at least {multiple_of}"
    )
  if kept < len(video):
    notice(
      f"{name} has {len(video)} frames; the first {kept} are used"
      + (f", the model makes {frames}" if kept == frames else "")
    )
  if video.shape[1:3] == size:
    return video[:kept]
  _tell(name, video.shape[1:3], size)
  return np.stack([fit(frame, size) for frame in video[:kept]])


def check_video(video: Clip, name: str) -> None:
  """Raises a UserError unless it is an RGB video of uint8."""
  if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8:
    raise UserError(
      name,
      f"is {video.dtype} {video.shape}",
      "give uint8 (frames, height, width, 3)",
    )


def mask_of_size(
  mask: Bool[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"],
  size: Size,
  frames: int,
  name: str = option("mask"),
) -> Bool[np.ndarray, "t H W"]:
  """A mask for every frame, covering `size` as pictures are made to.

  Args:
    mask: True where pixels are generated, as the Python API takes it; of one
      picture, for all frames, or of a video, whose last frame is repeated.
  Returns:
    True where pixels are given; some are, and some are not.
  """
  if mask.ndim not in (2, 3) or mask.dtype != bool or not mask.size:
    raise UserError(
      name,
      f"is {mask.dtype} {mask.shape}",
      "give bool (height, width) or (frames, height, width)",
    )
  stack = ~(mask[None] if mask.ndim == 2 else mask[:frames])
  if stack.shape[1:] != size:
    _tell(name, stack.shape[1:], size)
    stack = np.stack([fit_mask(frame, size) for frame in stack])
  check_mask(stack, name)
  missing = frames - len(stack)
  return np.concatenate([stack, np.repeat(stack[-1:], missing, axis=0)])


def _tell(name: str, given: Size, size: Size) -> None:
  sides = lambda s: f"{s[1]}x{s[0]}"
  how = "resized"
  if given[0] * size[1] != given[1] * size[0]:
    how = "resized and cropped at its centre"
  notice(f"{name} is {sides(given)}, {how} to {sides(size)}")
