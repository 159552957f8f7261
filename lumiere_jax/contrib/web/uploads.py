"""Uploaded files and painted masks, checked before they are decoded.

The type of a file is detected by its first bytes. Left to detect it themselves,
FFmpeg would follow a playlist to other files and hosts, and Pillow would pass
PostScript to an interpreter.
"""

import math
import os
from pathlib import Path
import shutil
import tempfile
from typing import BinaryIO

from jaxtyping import Bool, UInt8
import numpy as np
from PIL import Image

from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.errors import UserError, foreign_errors, option
from lumiere_jax.media.container import measure, open_video
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import open_picture
from lumiere_jax.media.video_reader import read_clip

PICTURES = {".png", ".jpg", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mkv", ".avi", ".gif"}


_SIGNATURES = {
  b"\x89PNG\r\n\x1a\n": ".png",
  b"\xff\xd8\xff": ".jpg",
  b"BM": ".bmp",
  b"GIF8": ".gif",
  b"\x1a\x45\xdf\xa3": ".mkv",
}
_RIFF = {b"WEBP": ".webp", b"AVI ": ".avi"}
_QUICKTIME = {b"ftyp", b"moov", b"mdat", b"wide", b"free"}


_MAX_FPS = 240  # a file of a million tiny frames would take hours to decode


EDITOR_SIDE = 640
"""Longer side of the mask editor's background; small clips are enlarged."""


_MIN_ALPHA = 64  # fainter strokes are not part of the mask


def file_type(path: str | os.PathLike) -> str:
  """The suffix of a file's type, by its first bytes; '' if unknown."""
  with open(path, "rb") as file:
    head = file.read(12)
  for signature, suffix in _SIGNATURES.items():
    if head.startswith(signature):
      return suffix
  if head[4:8] in _QUICKTIME:
    return ".mp4"
  return _RIFF.get(head[8:12], "") if head[:4] == b"RIFF" else ""


def take_picture(
  path: str | None, field: str, limits: Limits, folder: Path
) -> str:
  """Checks an uploaded picture and stores it in the folder of a job.

  Args:
    path: of the upload; None: no upload.
    field: of the form, such as 'image'.
    limits: limits on uploads.
    folder: to store it in.

  Returns:
    Its new path; '' without an upload.
  """
  if not path:
    return ""
  kinds = "png, jpg, webp or bmp picture"
  taken = _store(path, field, PICTURES, kinds, limits, folder)
  with open_picture(taken) as image:
    check_sides(option(field), image.size, limits)
    image.load()  # raises if it is damaged
  return os.fspath(taken)


def take_video(
  path: str | None, field: str, limits: Limits, folder: Path
) -> str:
  """Checks and stores an uploaded video, like `take_picture`.

  The length is measured by the packets; only its first picture is decoded, or
  that of each recording if several were joined.
  """
  if not path:
    return ""
  kinds = "mp4, mov, webm, mkv, avi or gif video"
  taken = _store(path, field, VIDEOS, kinds, limits, folder)
  with open_video(taken) as track:
    codec = track.stream.codec_context
    check_sides(option(field), (codec.width, codec.height), limits)
  _check_length(taken, field, limits)
  return os.fspath(taken)


def take_mask(path: str | None, limits: Limits, folder: Path) -> str:
  """Checks and stores an uploaded mask, a picture or a video."""
  if path and file_type(path) in PICTURES:
    return take_picture(path, "mask", limits, folder)
  return take_video(path, "mask", limits, folder)


def check_sides(what: str, size: tuple[int, int], limits: Limits) -> None:
  """Raises a UserError if a side of `what`, (width, height), is too large."""
  if max(size) > limits.max_side:
    raise UserError(
      what,
      f"is too large: {size[0]}x{size[1]} pixels",
      f"at most {limits.max_side} a side are accepted",
    )


def check_pixels(
  what: str, frames: int, size: tuple[int, int], limits: Limits
) -> None:
  """Raises a UserError if a video, `what`, has more pixels than the limit."""
  width, height = size
  millions = frames * width * height / 1e6
  if millions > limits.max_mpixels:
    raise UserError(
      what,
      f"is too large: {frames} frames of {width}x{height} are "
      f"{millions:.0f} million pixels",
      f"at most {limits.max_mpixels:g} are accepted, so make it shorter or "
      "smaller",
    )


def _store(
  path: str,
  field: str,
  suffixes: set[str],
  kinds: str,
  limits: Limits,
  folder: Path,
) -> Path:
  """Checks type and size, then links or copies the file.

  The new name is ours, so no user's file name reaches a decoder; and the file
  outlives the upload while its job waits.
  """
  try:
    suffix = file_type(path)
    megabytes = os.path.getsize(path) / 1e6
  except OSError as error:
    raise UserError(
      option(field), "no longer exists on the server", "upload it again"
    ) from error
  if suffix not in suffixes:
    raise UserError(option(field), f"is not a {kinds}", "upload such a file")
  if megabytes > limits.max_mb:
    raise UserError(
      option(field),
      f"is too large: {megabytes:.1f} MB",
      f"at most {limits.max_mb:g} MB are accepted",
    )
  target = folder / f"{field}{suffix}"
  folder.mkdir(parents=True, exist_ok=True)
  target.unlink(missing_ok=True)
  try:
    os.link(path, target)
  except OSError:  # another file system
    shutil.copyfile(path, target)
  return target


def _check_length(path: Path, field: str, limits: Limits) -> None:
  """Checks the length by the packets: what a file states may be wrong."""
  most = math.ceil(limits.max_seconds * _MAX_FPS)
  measured = measure(path, most)
  many = measured.num_frames > most
  if many or measured.duration_s > limits.max_seconds + 0.1:
    raise UserError(
      option(field),
      "is too long" + ("" if many else f": {measured.duration_s:.1f} s"),
      f"at most {limits.max_seconds:g} s are accepted",
    )


def editor_background(
  path: str, field: str, limits: Limits
) -> UInt8[np.ndarray, "h w 3"]:
  """Reads the background of the mask editor from an upload.

  The field is 'image', or 'video' for its first frame. The longer side of the
  result is `EDITOR_SIDE`.
  """
  with tempfile.TemporaryDirectory() as name:
    if field == "image":
      pixels = read_image(take_picture(path, field, limits, Path(name)))
    else:
      taken = take_video(path, field, limits, Path(name))
      pixels = read_clip(taken, start_s=0.0, num_frames=1, fps=1.0)[0]
  image = Image.fromarray(pixels)
  scale = EDITOR_SIDE / max(image.size)
  size = [max(1, round(side * scale)) for side in image.size]
  return np.asarray(image.resize(size))


def painted_mask(
  layers: list[str | BinaryIO],
) -> Bool[np.ndarray, "h w"] | None:
  """The union of the strokes on the layers of the mask editor.

  Each layer is a picture whose alpha channel holds strokes; None without any.
  """
  masks = [_read_strokes(layer) for layer in layers]
  if len({mask.shape for mask in masks}) > 1:
    raise UserError(
      "The painted mask", "has layers of different sizes", "paint it again"
    )
  return np.any(masks, axis=0) if masks else None


def _read_strokes(layer: str | BinaryIO) -> Bool[np.ndarray, "h w"]:
  wrong = lambda reason: UserError(
    "The painted mask", "is not a picture", "paint it again"
  )
  formats = ("PNG", "WEBP")
  with foreign_errors(wrong), Image.open(layer, formats=formats) as image:
    if max(image.size) > EDITOR_SIDE:
      raise UserError("The painted mask", "is too large", "paint it again")
    return np.asarray(image.convert("RGBA"))[..., 3] > _MIN_ALPHA
