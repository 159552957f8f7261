"""Still images: reading, writing and contact sheets of videos."""

from collections.abc import Sequence
from fractions import Fraction
import math
from pathlib import Path

import av
from jaxtyping import UInt8
import numpy as np
from PIL import Image

from lumiere_jax.errors import UserError, notice
from lumiere_jax.media.input_file import (
  RGBImage,
  is_animated,
  open_picture,
  rgb,
)
from lumiere_jax.media.resize import Framing
from lumiere_jax.storage.atomic import replacing

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def check_image_output(path) -> None:
  """Raises a UserError if `write_image` could not write to `path`."""
  ending = Path(path).suffix
  if ending.lower() not in FORMATS:
    raise UserError(
      f"{path}:",
      f"cannot write images that end in {ending!r}",
      f"known: {', '.join(FORMATS)}",
    )
  if Path(path).is_dir():
    raise UserError(f"{path}:", "is a folder", "name a file")


def write_image(path, image: RGBImage) -> None:
  """Writes an image in the format of its ending: .png, .jpg or .jpeg."""
  check_image_output(path)
  kind, picture = FORMATS[Path(path).suffix.lower()], Image.fromarray(image)
  with replacing(path) as temporary:
    picture.save(temporary, kind, quality=95)


def read_image(path, resolution: tuple[int, int] | None = None) -> RGBImage:
  """Reads a still image as RGB, upright according to its EXIF orientation.

  Transparent parts become white. Of an animation the first frame is used,
  with a notice.

  Args:
    path: png, jpg, webp, avif, heic or another format that Pillow reads.
    resolution: (height, width) to `fit` it to; None keeps its own.
  """
  with open_picture(path) as image:
    if is_animated(image):
      notice(f"{path} is animated; its first frame is used")
    pixels = rgb(image)
  return pixels if resolution is None else fit(pixels, resolution)


def fit(image: RGBImage, resolution: tuple[int, int]) -> RGBImage:
  """Resizes an image to cover (height, width), then crops it at its centre."""
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
  return Framing(resolution=resolution)(frame, Fraction(1))


def contact_sheet(
  video: UInt8[np.ndarray, "t h w 3"],
  *,
  columns: int | None = None,
  max_frames: int = 16,
  border: int = 2,
) -> UInt8[np.ndarray, "H W 3"]:
  """Frames of a video in reading order on a white sheet.

  Args:
    video: (t, h, w, 3) uint8.
    columns: frames side by side; None makes the sheet nearly square.
    max_frames: of a longer video, frames that are evenly spaced from the first
      to the last.
    border: white pixels between and around the frames.
  """
  if max_frames < 1 or (columns is not None and columns < 1):
    raise UserError(
      "contact sheet:",
      f"columns={columns} and max_frames={max_frames} must be at least 1",
    )
  t, h, w, _ = video.shape
  count = min(t, max_frames)
  columns = min(count, columns or math.ceil(math.sqrt(count)))
  rows = math.ceil(count / columns)
  size = rows * (h + border) + border, columns * (w + border) + border
  sheet = np.full((*size, 3), 255, np.uint8)
  for cell, k in enumerate(np.linspace(0, t - 1, count).round().astype(int)):
    row, column = divmod(cell, columns)
    top, left = border + row * (h + border), border + column * (w + border)
    sheet[top : top + h, left : left + w] = video[k]
  return sheet


def side_by_side(
  pictures: Sequence[UInt8[np.ndarray, "... h w 3"]], gap: int = 2
) -> UInt8[np.ndarray, "... h W 3"]:
  """Pictures or videos of one size in a row, `gap` white pixels apart."""
  first = pictures[0]
  white = np.full((*first.shape[:-2], gap, 3), 255, np.uint8)
  row = [part for picture in pictures for part in (white, picture)][1:]
  return np.concatenate(row, axis=-2)
