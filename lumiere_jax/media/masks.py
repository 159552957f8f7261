"""User masks: which pixels of a video are given and which are generated.

In a file, white marks the pixels to generate and black the pixels to keep;
pixels at least half as bright as white count as white. Transparent parts lie
over black, so white strokes on an empty layer are a valid mask. Everything
here returns masks of the one polarity of this package: True = given.
"""

from collections.abc import Iterator
import itertools
from pathlib import Path

from jaxtyping import Bool
import numpy as np

from lumiere_jax.errors import UserError, VideoError, notice, option
from lumiere_jax.media.container import open_video
from lumiere_jax.media.images import fit
from lumiere_jax.media.input_file import (
  RGBImage,
  frames_of,
  is_image_file,
  open_picture,
  png_files,
  read_npy,
  rgb,
)
from lumiere_jax.typing import Mask

MaskFrame = Bool[np.ndarray, "h w"]
Box = tuple[int, int, int, int]

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709
_HALF = 127.5


def read_mask(path, resolution: tuple[int, int], num_frames: int) -> Mask:
  """Reads a mask file and resizes it as `images.fit` resizes pictures.

  Resizing is reported.

  Args:
    path: a picture, a video, an animated GIF, WebP or PNG, a folder of png
      images in order of their names, or an .npy file of (h, w) or (t, h, w):
      bool, or uint8 of 0..255 (or of 0 and 1). Transparent parts are black.
    resolution: (height, width) of the result.
    num_frames: t. A longer mask is cut, frame by frame whatever its frame
      rate; of a shorter one, or a picture, the last frame is repeated.

  Returns:
    (t, h, w), True where pixels are given: black in the file.
  """
  path = Path(path)
  frames, sizes = [], set()
  for frame in itertools.islice(_read_frames(path), num_frames):
    sizes.add(frame.shape)
    if len(sizes) > 1:
      raise VideoError(path, "mixed sizes: all frames must have one size")
    frames.append(fit_mask(frame, resolution))
  if not frames:
    raise VideoError(path, "no frames: nothing in it can be decoded")
  (size,) = sizes
  if size != tuple(resolution):
    notice(
      f"{option('mask', path)} is {_by(size)}, resized to {_by(resolution)}"
    )
  return _repeat_last(frames, num_frames)


def box_mask(
  box: Box, size: tuple[int, int], resolution: tuple[int, int], num_frames: int
) -> Mask:
  """A box that is generated in all frames; the rest is given.

  Args:
    box: (x0, y0, x1, y1) in pixels of the user's picture, without column x1
      and row y1.
    size: (height, width) of that picture.
    resolution: (height, width) that the picture is resized to cover and
      cropped to at its centre.
    num_frames: t.

  Returns:
    (t, h, w), False inside the box.
  """
  x0, y0, x1, y1 = box
  field = option("box", f"{x0},{y0},{x1},{y1}")
  if x0 >= x1 or y0 >= y1:
    raise UserError(
      field, "is empty", "give x0,y0,x1,y1 with x0 below x1 and y0 below y1"
    )
  if min(box) < 0 or x1 > size[1] or y1 > size[0]:
    raise UserError(
      field,
      f"reaches outside the picture, which is {_by(size)}",
      f"give a box within 0,0,{size[1]},{size[0]}",
    )
  frame = np.ones(size, bool)
  frame[y0:y1, x0:x1] = False
  return _repeat_last([fit_mask(frame, resolution)], num_frames)


def parse_box(text: str) -> Box:
  """'x0,y0,x1,y1' as four integers; `box_mask` checks their values."""
  form = "give x0,y0,x1,y1 in pixels, such as 0,0,64,32"
  return _parse(option("box", text), text, form)


def parse_expand(text: str) -> Box:
  """'left,top,right,bottom': how many pixels to add on each side."""
  field = option("expand", text)
  form = "give left,top,right,bottom in pixels, such as 32,0,32,0"
  edges = _parse(field, text, form)
  if min(edges) < 0:
    raise UserError(field, "has a number below 0", form)
  if not any(edges):
    raise UserError(field, "adds nothing", form)
  return edges


def _parse(field: str, text: str, form: str) -> Box:
  try:
    a, b, c, d = map(int, text.split(","))
  except ValueError as error:
    raise UserError(field, "is not four whole numbers", form) from error
  return a, b, c, d


def check_mask(mask: Mask, name: str = option("mask")) -> None:
  """Raises a UserError unless some pixels are given and some are generated.

  The error calls the mask `name`.
  """
  if mask.all():
    raise UserError(
      f"{name}:",
      f"marks nothing to generate within {_by(mask.shape[1:])}, the part "
      "left after cropping",
      "mark a part of it, in a file with white",
    )
  if not mask.any():
    raise UserError(
      f"{name}:",
      "marks everything to be generated",
      f"leave out a part to keep, or use {option('task', 'text_to_video')}",
    )


def fit_mask(frame: MaskFrame, resolution: tuple[int, int]) -> MaskFrame:
  """Resizes one frame of a mask as `fit` resizes pictures."""
  if frame.shape == tuple(resolution):
    return frame
  pixels = np.where(frame, 0, 255).astype(np.uint8)[..., None].repeat(3, -1)
  return _from_pixels(fit(pixels, resolution))


def _read_frames(path: Path) -> Iterator[MaskFrame]:
  # Pillow composes the transparent frames of a GIF; FFmpeg turns pixels that
  # were never painted white.
  if path.is_dir() or is_image_file(path):
    for picture in png_files(path) if path.is_dir() else [path]:
      with open_picture(picture) as image:
        for frame in frames_of(image):
          yield _from_pixels(rgb(frame, "black"))
  elif path.suffix.lower() == ".npy":
    yield from _from_array(path)
  else:
    with open_video(path) as track:
      for _, pixels in track.images(background=0):
        yield _from_pixels(pixels)


def _from_array(path: Path) -> Mask:
  array = read_npy(path)
  if array.dtype not in (np.bool_, np.uint8) or array.ndim not in (2, 3):
    raise VideoError(
      path,
      f"not a mask: {array.dtype} {array.shape}; save bool or uint8, (h, w) or "
      "(t, h, w)",
    )
  if not array.size:
    raise VideoError(path, f"not a mask: {array.shape} has no pixels")
  if array.dtype == np.uint8:
    # Where nothing is above 1, 1 means white, not 1 of 255.
    array = array == 1 if array.max() == 1 else array > _HALF
  return ~array.reshape(-1, *array.shape[-2:])


def _from_pixels(pixels: RGBImage) -> MaskFrame:
  """The one place where white (to generate) becomes False (not given)."""
  return pixels @ _LUMA < _HALF


def _repeat_last(frames: list[MaskFrame], num_frames: int) -> Mask:
  return np.stack(frames + frames[-1:] * (num_frames - len(frames)))


def _by(size: tuple[int, ...]) -> str:
  return f"{size[1]}x{size[0]}"
