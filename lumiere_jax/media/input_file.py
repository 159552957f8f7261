"""Input files on disk or in memory: checks, arrays and pictures."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import os
from pathlib import Path

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from lumiere_jax.errors import VideoError

RGBImage = UInt8[np.ndarray, "h w 3"]
PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, rows and columns are exchanged


@dataclasses.dataclass(frozen=True)
class InMemoryFile:
  """A video or picture in memory.

  Attributes:
    name: what errors call it.
    data: the bytes of the file.
  """

  name: str
  data: bytes = dataclasses.field(repr=False)

  def __str__(self) -> str:
    return self.name

  def open(self) -> io.BytesIO:
    """The file, opened."""
    return io.BytesIO(self.data)


def require_file(path) -> None:
  """Raises a VideoError unless `path` is a readable, non-empty file."""
  if isinstance(path, InMemoryFile):
    size = len(path.data)
  elif not os.path.exists(path):
    link = os.path.islink(path)
    reason = "a link to no file" if link else "no such file"
    raise VideoError(path, f"missing: {reason}")
  elif not os.path.isfile(path):
    raise VideoError(path, "not a file: give a video file")
  elif not os.access(path, os.R_OK):
    raise VideoError(path, "not readable: permission denied")
  else:
    size = os.path.getsize(path)
  if not size:
    raise VideoError(path, "empty file: 0 bytes")


def read_npy(path) -> np.ndarray:
  """Reads an array; never unpickles."""
  require_file(path)
  try:
    with open(path, "rb") as file:
      return np.lib.format.read_array(file, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise VideoError(path, f"not an array: {error}") from error


def png_files(folder: Path) -> list[Path]:
  """The .png files of a folder in order of their names; at least one."""
  paths = sorted(p for p in folder.glob("*.png") if p.name[0] != ".")
  if not paths:
    raise VideoError(folder, "no frames: no .png files in this folder")
  return paths


@contextlib.contextmanager
def open_picture(path) -> Iterator[Image.Image]:
  """Opens a picture.

  Raises:
    VideoError: it cannot be opened, or decoding it in the context fails.
  """
  require_file(path)
  try:
    source = path.open() if isinstance(path, InMemoryFile) else path
    with Image.open(source) as image:
      yield image
  except Image.DecompressionBombError as error:
    raise VideoError(path, f"too large: {error}") from error
  except UnidentifiedImageError as error:
    reason = "not a picture, or cut short: give a png, jpg, webp or bmp"
    raise VideoError(path, reason) from error
  except (OSError, SyntaxError, ValueError) as error:
    reason = f"damaged: {error}; copy it again or re-encode it"
    raise VideoError(path, reason) from error


def is_picture(path) -> bool:
  """Whether a file has a picture's ending and is not animated."""
  if Path(path).suffix.lower() not in PICTURE_ENDINGS:
    return False
  with open_picture(path) as image:
    return not getattr(image, "is_animated", False)


def picture_size(path) -> tuple[int, int]:
  """(height, width) of an upright picture; decodes it to find damage."""
  with open_picture(path) as image:
    width, height = image.size
    turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    image.draft("RGB", (1, 1))  # decodes a JPEG at an eighth of its size
    image.load()
  return (width, height) if turned else (height, width)


def rgb(image: Image.Image, background: str = "white") -> RGBImage:
  """Upright RGB; transparent parts show the background colour."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, background)
    image = Image.alpha_composite(below, image)
  return np.array(image.convert("RGB"))


def animated_webp(path) -> io.BytesIO | None:
  """An animated WebP as an animated PNG, which FFmpeg can read, else None."""
  with open(path, "rb") as file:
    head = file.read(21)
  kind, features = head[:4] + head[8:16], head[20:]
  if kind != b"RIFFWEBPVP8X" or not features or not features[0] & 2:
    return None
  png = io.BytesIO()
  with open_picture(path) as image:
    frames = [
      (Image.fromarray(rgb(frame)), frame.info["duration"])
      for frame in ImageSequence.Iterator(image)
    ]
  images, milliseconds = zip(*frames, strict=True)
  images[0].save(
    png,
    "PNG",
    save_all=True,
    append_images=images[1:],
    duration=list(milliseconds),
    compress_level=1,
  )
  png.seek(0)
  return png
