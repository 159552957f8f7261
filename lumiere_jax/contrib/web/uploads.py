"""Uploaded files: measured before anything decodes them, then set aside.

What a file is, is told by its first bytes alone. Asked to find out by
themselves, FFmpeg would follow a playlist to other files and hosts, and Pillow
would hand PostScript to an interpreter.
"""

import os
from pathlib import Path
import shutil

from lumiere_jax.contrib.web.labels import LABELS
from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.errors import UserError
from lumiere_jax.media.container import Track, open_video
from lumiere_jax.media.input_file import open_picture

PICTURES = {".png", ".jpg", ".webp", ".bmp"}


VIDEOS = {".mp4", ".mkv", ".avi", ".gif"}


_QUICKTIME = {b"ftyp", b"moov", b"mdat", b"wide", b"free"}


_MOST_FPS = 240  # A file of a million tiny frames would take hours to decode.


def kind(path: str | os.PathLike) -> str:
  """The ending that a file should have, by its first bytes; '' is unknown."""
  with open(path, "rb") as file:
    head = file.read(12)
  beginnings = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"\x1a\x45\xdf\xa3": ".mkv",
  }
  for beginning, ending in beginnings.items():
    if head.startswith(beginning):
      return ending
  if head[4:8] in _QUICKTIME:
    return ".mp4"
  riff = {b"WEBP": ".webp", b"AVI ": ".avi"}
  return riff.get(head[8:12], "") if head[:4] == b"RIFF" else ""


def take_picture(
  path: str | None, field: str, limits: Limits, folder: Path
) -> str:
  """Measures an uploaded picture and sets it aside.

  Args:
    path: of the upload; None: there is none.
    field: what it is for, such as 'image'.
    limits: what may be uploaded.
    folder: to set it aside in.

  Returns:
    Its new path; '' if there is none.

  Raises:
    UserError: it is no picture, or too large.
  """
  if not path:
    return ""
  ending = _kind(path, field, PICTURES, "png, jpg, webp or bmp picture")
  _check_bytes(path, field, limits)
  taken = _set_aside(path, folder / f"{field}{ending}")
  with open_picture(taken) as image:
    check_sides(LABELS[field], image.size, limits)
    image.load()  # which says if it is damaged
  return os.fspath(taken)


def take_video(
  path: str | None, field: str, limits: Limits, folder: Path
) -> str:
  """Measures an uploaded video, as `take_picture` does.

  Its packets are counted, and none is decoded.

  Raises:
    UserError: it is no video, too large or too long.
  """
  if not path:
    return ""
  ending = _kind(path, field, VIDEOS, "mp4, mov, webm, mkv, avi or gif video")
  _check_bytes(path, field, limits)
  taken = _set_aside(path, folder / f"{field}{ending}")
  with open_video(taken) as track:
    codec = track.stream.codec_context
    check_sides(LABELS[field], (codec.width, codec.height), limits)
    _check_length(track, field, limits)
  return os.fspath(taken)


def take_mask(path: str | None, limits: Limits, folder: Path) -> str:
  """Measures an uploaded mask, a picture or a video.

  Raises:
    UserError: it is neither, too large or too long.
  """
  if path and kind(path) in PICTURES:
    return take_picture(path, "mask", limits, folder)
  return take_video(path, "mask", limits, folder)


def check_sides(what: str, size: tuple[int, int], limits: Limits) -> None:
  """Raises a UserError if a picture or video is larger than is let in.

  Args:
    what: is so large, such as 'Video'.
    size: (width, height) of it in pixels.
    limits: what may be.
  """
  width, height = size
  if max(size) > limits.max_side:
    raise UserError(
      what,
      f"is too large: {width}x{height} pixels",
      f"at most {limits.max_side} a side are taken here",
    )


def check_pixels(
  what: str, frames: int, size: tuple[int, int], limits: Limits
) -> None:
  """Raises a UserError if a video would fill the memory.

  Args:
    what: is so large, such as 'Video'.
    frames: of it.
    size: (width, height) of them in pixels.
    limits: what may be.
  """
  width, height = size
  millions = frames * width * height / 1e6
  if millions > limits.max_mpixels:
    raise UserError(
      what,
      f"is too large: {frames} frames of {width}x{height} are "
      f"{millions:.0f} million pixels",
      f"at most {limits.max_mpixels:g} are taken here, so make it "
      "shorter or smaller",
    )


def _kind(path: str, field: str, known: set[str], wanted: str) -> str:
  try:
    ending = kind(path)
  except OSError as error:
    raise UserError(
      f"{LABELS[field]}", "is no longer there", "upload it again"
    ) from error
  if ending not in known:
    raise UserError(
      f"{LABELS[field]}", f"is not a {wanted}", "give such a file"
    )
  return ending


def _check_bytes(path: str, field: str, limits: Limits) -> None:
  megabytes = os.path.getsize(path) / 1e6
  if megabytes > limits.max_mb:
    raise UserError(
      f"{LABELS[field]}",
      f"is too large: {megabytes:.1f} MB",
      f"at most {limits.max_mb:g} MB are taken here",
    )


def _set_aside(path: str, place: Path) -> Path:
  """Under a name of ours: no name of a user's reaches a decoder, and what
  waits in the queue outlasts the upload."""
  place.parent.mkdir(parents=True, exist_ok=True)
  place.unlink(missing_ok=True)
  try:
    os.link(path, place)
  except OSError:  # another file system
    shutil.copyfile(path, place)
  return place


def _check_length(track: Track, field: str, limits: Limits) -> None:
  """By the packets: what a file states of itself need not be so."""
  base, start = track.stream.time_base, track.stream.start_time or 0
  packets, end_s = 0, (track.container.duration or 0) / 1e6
  for packet in track.container.demux(track.stream):
    packets += packet.size > 0
    if packet.pts is not None:
      end = packet.pts + (packet.duration or 0) - start
      end_s = max(end_s, float(end * base))
    if packets > limits.max_seconds * _MOST_FPS:
      end_s = float("inf")
    if end_s > limits.max_seconds + 0.1:
      break
  else:
    return
  length = "" if end_s == float("inf") else f": {end_s:.1f} s"
  raise UserError(
    f"{LABELS[field]}",
    f"is too long{length}",
    f"at most {limits.max_seconds:g} s are taken here",
  )
