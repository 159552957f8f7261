"""Opened video files: their one picture stream and when each picture shows.

Times are seconds since the stream's own start, whatever offset the file has.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from fractions import Fraction

import av
import numpy as np

from lumiere_jax.errors import VideoError
from lumiere_jax.media.input_file import (
  InMemoryFile,
  animated_webp,
  require_file,
)

TOLERANCE_S = 1e-3
"""Matroska and FLV round every timestamp to a millisecond."""


_WITHOUT_TIMESTAMPS = 0x80  # libavformat's AVFMT_NOTIMESTAMPS


_UNSPECIFIED_RATE = Fraction(25)


# Formats that seek by an index or by timestamps and find them true there.
_SEEKABLE = ("mov", "matroska", "avi", "flv", "mpegts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
  """The picture stream of an opened file."""

  path: str
  container: av.container.InputContainer
  stream: av.VideoStream

  @property
  def rate(self) -> Fraction:
    """Frames per second, as the file states or its first frames suggest."""
    stream = self.stream
    return stream.average_rate or stream.guessed_rate or _UNSPECIFIED_RATE

  @property
  def pixel_aspect(self) -> Fraction:
    """Width over height of one stored pixel."""
    return self.stream.codec_context.sample_aspect_ratio or Fraction(1)

  @property
  def start(self) -> int | None:
    """The timestamp that times count from; None: there are none."""
    if self.container.format.name == "apng":  # begins at 0 and does not say so
      return 0
    return self.stream.start_time

  @property
  def counted(self) -> bool:
    """Whether times must be counted at `rate`, for want of timestamps.

    Raw streams have none, and AVI has only the order of decoding, which is
    not the order of showing where there are B-frames.
    """
    reordered_avi = (
      self.container.format.name == "avi"
      and self.stream.codec_context.has_b_frames
    )
    bare = self.container.format.flags & _WITHOUT_TIMESTAMPS
    return bool(reordered_avi or bare or self.start is None)

  def time(self, frame: av.VideoFrame, order: int) -> float:
    """When `frame`, the `order`-th from the start, begins to show."""
    if self.counted or frame.pts is None:
      return order / float(self.rate)
    return float((frame.pts - self.start) * frame.time_base)

  def lasts(self, frame: av.VideoFrame) -> float:
    """For how many seconds `frame` shows if none comes after it."""
    if self.counted or not frame.duration:
      return 1 / float(self.rate)
    return float(frame.duration * frame.time_base)

  def seek(self, time_s: float) -> bool:
    """Goes to the last key frame before `time_s`, or stays at the start.

    Returns:
      False: the file turned out to have no way to get there; open it anew.
    """
    name = self.container.format.name
    if time_s <= 0 or self.counted or not name.startswith(_SEEKABLE):
      return True
    ticks = int(time_s / self.stream.time_base) + self.start
    try:
      self.container.seek(ticks, stream=self.stream)
    except av.FFmpegError:
      return False
    return True

  def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
    """(time, frame) of all that follow, in order of showing."""
    decoded = self.container.decode(self.stream)
    return ((self.time(f, order), f) for order, f in enumerate(decoded))


@contextlib.contextmanager
def open_video(path, num_threads: int = 1) -> Iterator[Track]:
  """Opens a video file.

  Args:
    path: the file, or a Blob.
    num_threads: of the decoder; 0: as many as there are cores.

  Raises:
    VideoError: it is missing, empty, no video or has no picture stream; or
      the decoder gives up while the file is open.
  """
  require_file(path)
  if isinstance(path, InMemoryFile):
    source = path.open()
  else:
    # "file:" keeps a colon in a name from being read as a protocol.
    source = animated_webp(path) or f"file:{path}"
  try:
    container = av.open(source, metadata_errors="replace")
  except av.FFmpegError as error:
    reason = f"not a video, or cut short: {error.strerror}"
    raise VideoError(path, reason) from error
  with container:
    stream = _picture_stream(path, container)
    stream.thread_type = "AUTO" if num_threads != 1 else "SLICE"
    stream.codec_context.thread_count = num_threads
    try:
      yield Track(path=str(path), container=container, stream=stream)
    except av.FFmpegError as error:
      reason = f"damaged: the decoder gave up ({error.strerror})"
      raise VideoError(path, reason) from error


def _picture_stream(path, container) -> av.VideoStream:
  cover = av.stream.Disposition.attached_pic
  videos = [s for s in container.streams.video if not s.disposition & cover]
  if not videos:
    kinds = sorted({s.type for s in container.streams}) or ["nothing"]
    raise VideoError(path, f"no video stream: only {', '.join(kinds)}")
  best = container.streams.best("video")
  stream = best if best in videos else videos[0]
  if stream.codec_context is None:
    raise VideoError(path, "unknown codec: no decoder; convert it to H.264")
  return stream


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
  """The (2, 2) part of the matrix that turns stored pixels upright, if any.

  Stored (x, y) shows at (x, y) @ matrix; x to the right, y downward.
  """
  side_data = frame.side_data.get("DISPLAYMATRIX")
  if side_data is None:
    return None
  return np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)[:2, :2]
