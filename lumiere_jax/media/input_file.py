"""Input files on disk or in memory: checks, arrays and pictures."""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import io
import os
from pathlib import Path

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from lumiere_jax.errors import VideoError, foreign_errors

RGBImage = UInt8[np.ndarray, "h w 3"]
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, rows and columns are exchanged

_FIRST_BYTES = (
  *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM"),
  *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF
  *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),  # JPEG 2000
)
# Main brands of ISO media files that hold pictures; those of others are videos.
_AVIF, _HEIF = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"mif1")

# Several pictures in other formats are pages, or what phones add to a photo.
_ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")


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
  wrong = lambda reason: VideoError(path, f"not an array: {reason}")
  with foreign_errors(wrong), open(path, "rb") as file:
    return np.lib.format.read_array(file, allow_pickle=False)


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
  source = path.open() if isinstance(path, InMemoryFile) else path
  damaged = lambda reason: VideoError(
    path, f"damaged: {reason}; copy it again or re-encode it"
  )
  with foreign_errors(damaged):
    if _brand(_head(path)) in _HEIF:
      _enable_heif(path)
    try:
      with Image.open(source) as image:
        yield image
    except Image.DecompressionBombError as error:
      raise VideoError(path, f"too large: {error}") from error
    except UnidentifiedImageError as error:
      reason = "not a picture, or cut short: give a png, jpg, webp or bmp"
      raise VideoError(path, reason) from error


def _enable_heif(path) -> None:
  try:
    from pi_heif import register_heif_opener
  except ImportError as error:
    reason = "HEIC needs a package: pip install pi-heif, or convert it to jpg"
    raise VideoError(path, reason) from error
  register_heif_opener()


def is_image_file(path) -> bool:
  """Whether a file begins as a picture or animation, whatever its ending."""
  require_file(path)
  head = _head(path)
  webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
  pictures = head.startswith(_FIRST_BYTES) or _brand(head) in _AVIF + _HEIF
  return webp or pictures


def is_picture(path) -> bool:
  """Whether the content of a file is a picture that is not animated."""
  if not is_image_file(path):
    return False
  with open_picture(path) as image:
    return not is_animated(image)


def is_animated(image: Image.Image) -> bool:
  """Whether an image is an animation, not a picture with pages or extras."""
  return image.format in _ANIMATED and getattr(image, "is_animated", False)


def frames_of(image: Image.Image) -> Iterable[Image.Image]:
  """The frames of an animation, or the picture itself."""
  return ImageSequence.Iterator(image) if is_animated(image) else [image]


def _head(path) -> bytes:
  if isinstance(path, InMemoryFile):
    return path.data[:16]
  wrong = lambda reason: VideoError(path, f"not readable: {reason}")
  with foreign_errors(wrong), open(path, "rb") as file:
    return file.read(16)


def _brand(head: bytes) -> bytes:
  """The main brand of an ISO media file (mp4, mov, avif, heic, ...), or b''."""
  return head[8:12] if head[4:8] == b"ftyp" else b""


def picture_size(path) -> tuple[int, int]:
  """(height, width) of an upright picture; decodes it to find damage."""
  with open_picture(path) as image:
    width, height = image.size
    image.draft("RGB", (1, 1))  # decodes a JPEG at an eighth of its size
    image.load()  # turns a TIFF
    turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
  return (width, height) if turned else (height, width)


def rgb(image: Image.Image, background: str = "white") -> RGBImage:
  """Upright RGB; transparent parts show the background colour."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
    levels = np.clip(np.asarray(image) // 257, 0, 255)
    image = Image.fromarray(levels.astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, background)
    image = Image.alpha_composite(below, image)
  return np.array(image.convert("RGB"))


def png_for_ffmpeg(path) -> io.BytesIO | None:
  """A picture or animation that FFmpeg misreads, as a PNG, which it can read.

  It reads no animated WebP, turns only the first frame of a PNG, and reads one
  tile or page of other formats. None: it reads the file as it is.
  """
  if not is_image_file(path):
    return None
  with open_picture(path) as image:
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    if is_animated(image) and image.format != "WEBP" and not turned:
      return None
    frames = [
      (Image.fromarray(rgb(frame)), frame.info.get("duration", 0))
      for frame in frames_of(image)
    ][getattr(image, "default_image", False) :]
  images, milliseconds = zip(*frames, strict=True)
  png = io.BytesIO()
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
