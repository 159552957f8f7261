"""Still images: read, write, and contact sheets of videos."""

from collections.abc import Sequence
from fractions import Fraction
import math
from pathlib import Path

import av
from jaxtyping import UInt8
import numpy as np
from PIL import Image

from lumiere_jax.errors import UserError, notice
from lumiere_jax.media.input_file import open_picture, rgb
from lumiere_jax.media.resize import Framing
from lumiere_jax.storage.atomic import replacing

Pixels = UInt8[np.ndarray, "h w 3"]


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def check_image_output(path) -> None:
  """Raises a UserError where `write_image` cannot write; costs nothing."""
  ending = Path(path).suffix
  if ending.lower() not in FORMATS:
    raise UserError(
      f"{path}:",
      f"cannot write images that end in {ending!r}",
      f"known: {', '.join(FORMATS)}",
    )


def write_image(path, image: Pixels) -> None:
  """Writes an image as its ending says: .png, .jpg or .jpeg.

  Raises:
    UserError: another ending.
  """
  check_image_output(path)
  path = Path(path)
  with replacing(path) as temporary:
    image = Image.fromarray(np.ascontiguousarray(image))
    image.save(temporary, FORMATS[path.suffix.lower()], quality=95)


def read_image(path, resolution: tuple[int, int] | None = None) -> Pixels:
  """Reads a still image as RGB, turned upright as its EXIF data says.

  What is transparent lies over white; of what moves the first frame is taken,
  and said so.

  Args:
    path: png, jpg, webp, bmp or whatever else Pillow reads.
    resolution: (height, width) that it is made to cover, with its aspect
      kept, and cut to at its centre; None: that of the image.

  Raises:
    VideoError: it is missing or not an image.
  """
  with open_picture(path) as image:
    if getattr(image, "is_animated", False):
      notice(f"{path} is animated; its first frame is taken")
    pixels = rgb(image)
  return pixels if resolution is None else fit(pixels, resolution)


def fit(image: Pixels, resolution: tuple[int, int]) -> Pixels:
  """Makes an image cover (height, width), aspect kept, cut at its centre."""
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
  return Framing(resolution=resolution)(frame, Fraction(1))


def contact_sheet(
  video: UInt8[np.ndarray, "t h w 3"],
  *,
  columns: int | None = None,
  max_frames: int = 16,
  border: int = 2,
) -> UInt8[np.ndarray, "H W 3"]:
  """Lays frames of a video out in reading order on a white sheet.

  Args:
    video: (t, h, w, 3) uint8.
    columns: frames side by side; None: as makes the sheet nearly square.
    max_frames: of a longer video as many frames are shown, evenly spaced from
      the first to the last.
    border: pixels of white between and around the frames.

  Raises:
    UserError: columns or max_frames below 1.
  """
  if max_frames < 1 or (columns is not None and columns < 1):
    raise UserError(
      "",
      f"contact sheet: {columns} columns, at most {max_frames} frames",
      "give 1 or more of each",
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
  """Pictures, or videos, of one size in a row, white between them.

  Args:
    pictures: (..., h, w, 3) each.
    gap: pixels of white.
  """
  first = pictures[0]
  white = np.full((*first.shape[:-2], gap, 3), 255, np.uint8)
  row = [part for picture in pictures for part in (white, picture)][1:]
  return np.concatenate(row, axis=-2)
