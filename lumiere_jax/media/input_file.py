"""Input files on disk or in memory: pictures, arrays, why one is refused."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import os
from pathlib import Path

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from lumiere_jax.errors import VideoError


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
  """Raises a VideoError unless `path` is a file with something in it."""
  if isinstance(path, InMemoryFile):
    if not path.data:
      raise VideoError(path, "empty file: 0 bytes")
    return
  if os.path.islink(path) and not os.path.exists(path):
    raise VideoError(path, "missing: a link that leads to no file")
  if not os.path.exists(path):
    raise VideoError(path, "missing: no such file")
  if not os.path.isfile(path):
    raise VideoError(path, "not a file: give a video file")
  if not os.access(path, os.R_OK):
    raise VideoError(path, "not readable: permission denied")
  if not os.path.getsize(path):
    raise VideoError(path, "empty file: 0 bytes")


def read_npy(path) -> np.ndarray:
  """Reads an array; never unpickles.

  Raises:
    VideoError: it is missing, or no such file.
  """
  require_file(path)
  try:
    with open(path, "rb") as file:
      return np.lib.format.read_array(file, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise VideoError(path, f"not an array: {error}") from error


PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


_ORIENTATION = 0x0112  # EXIF tag


# What makes each orientation upright; from 5 on, rows become columns.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def open_picture(path) -> Iterator[Image.Image]:
  """Opens a picture.

  Raises:
    VideoError: it is missing, empty or no picture; or it turns out to be
      damaged while it is open.
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
  """Whether a file is a still picture: by its ending, if it is not animated.

  Raises:
    VideoError: it has the ending of a picture and cannot be opened as one.
  """
  if Path(path).suffix.lower() not in PICTURE_ENDINGS:
    return False
  with open_picture(path) as image:
    return not getattr(image, "is_animated", False)


def picture_size(path) -> tuple[int, int]:
  """(height, width) of an upright picture that can be decoded to its end.

  Raises:
    VideoError: it cannot.
  """
  with open_picture(path) as image:
    width, height = image.size
    turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    image.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth of its size
    image.load()
  return (width, height) if turned else (height, width)


def rgb(image: Image.Image, page: str = "white") -> UInt8[np.ndarray, "h w 3"]:
  """Upright RGB; what is transparent lies over `page`, a colour."""
  method = _UPRIGHT.get(image.getexif().get(_ORIENTATION))
  image = image if method is None else image.transpose(method)
  if image.mode.startswith("I"):  # of 16 bits, which Pillow would clip
    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, page), image)
  return np.array(image.convert("RGB"))


def animated_webp(path) -> io.BytesIO | None:
  """An animated WebP as an animated PNG, which FFmpeg can read; or None.

  Raises:
    VideoError: it is damaged.
  """
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
