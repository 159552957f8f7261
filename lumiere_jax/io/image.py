"""Still images: read, write, and contact sheets of videos."""

import math
from pathlib import Path

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lumiere_jax.io.atomic import replacing
from lumiere_jax.typing import UserError

Pixels = UInt8[np.ndarray, "h w 3"]
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def check_image_output(path) -> None:
  """Raises a UserError where `write_image` cannot write; costs nothing."""
  ending = Path(path).suffix
  if ending.lower() not in FORMATS:
    raise UserError(
      f"{path}: cannot write images that end in {ending!r}; "
      f"known: {', '.join(FORMATS)}"
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


def read_image(path) -> Pixels:
  """Reads a still image as RGB, turned upright as its EXIF data says.

  Raises:
    UserError: it is missing or not an image.
  """
  try:
    with Image.open(path) as image:
      return np.array(ImageOps.exif_transpose(image).convert("RGB"))
  except (UnidentifiedImageError, OSError) as error:
    raise UserError(
      f"{path}: cannot be read as an image ({error}); give a png or a jpg"
    ) from error


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
      f"contact sheet: {columns} columns, at most {max_frames} frames; "
      "give 1 or more of each"
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
