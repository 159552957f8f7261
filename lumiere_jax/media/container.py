"""Opens video files: their video stream and the time of each frame.

Times are seconds since the stream's start, whatever offset the file has.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from fractions import Fraction
import io

import av
from av.sidedata import sidedata

from lumiere_jax.errors import VideoError, foreign_errors
from lumiere_jax.media.input_file import (
  InMemoryFile,
  RGBImage,
  png_for_ffmpeg,
  require_file,
)
from lumiere_jax.media.resize import Framing

TOLERANCE_S = 1e-3
"""Matroska and FLV round timestamps to milliseconds."""

_WITHOUT_TIMESTAMPS = 0x80  # libavformat's AVFMT_NOTIMESTAMPS
_UNSPECIFIED_RATE = Fraction(25)

# Formats with an index or timestamps that seeking can rely on.
_SEEKABLE = ("mov", "matroska", "avi", "flv", "mpegts")


def _unnamed(kinds: type[sidedata.Type], value: int) -> sidedata.Type:
  kind = object.__new__(kinds)
  vars(kind).update(_name_=f"TYPE_{value}", _value_=value)
  return kind


# PyAV refuses frames with side data that it has no name for, such as Exif.
setattr(sidedata.Type, "_missing_", classmethod(_unnamed))  # noqa: B010


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
  """The video stream of an opened file."""

  path: str
  container: av.container.InputContainer
  stream: av.VideoStream

  @property
  def rate(self) -> Fraction:
    """Frames per second, as stated or guessed from the first frames."""
    stream = self.stream
    return stream.average_rate or stream.guessed_rate or _UNSPECIFIED_RATE

  @property
  def pixel_aspect(self) -> Fraction:
    """Width over height of one stored pixel."""
    return self.stream.codec_context.sample_aspect_ratio or Fraction(1)

  @property
  def start(self) -> int | None:
    """The timestamp of time 0; None: times are derived from the frame rate.

    Raw streams have no timestamps. AVI has those of decoding only, which
    differ from presentation order where there are B-frames.
    """
    kind, context = self.container.format, self.stream.codec_context
    reordered_avi = kind.name == "avi" and context.has_b_frames
    if kind.flags & _WITHOUT_TIMESTAMPS or reordered_avi:
      return None
    # Animated PNG starts at 0 without stating it.
    return 0 if kind.name == "apng" else self.stream.start_time

  def time(self, frame: av.VideoFrame, index: int) -> float:
    """Presentation time of `frame`, the `index`-th from the start."""
    start, pts, unit = self.start, frame.pts, frame.time_base
    if start is None or pts is None or unit is None:
      return index / float(self.rate)
    return float((pts - start) * unit)

  def duration(self, frame: av.VideoFrame) -> float:
    """Seconds that `frame` is shown if no other follows."""
    unit = frame.time_base
    if self.start is None or not frame.duration or unit is None:
      return 1 / float(self.rate)
    return float(frame.duration * unit)

  def seek(self, time_s: float) -> bool:
    """Seeks to the last key frame before `time_s`, or stays at the start.

    Returns:
      False if the file cannot seek after all; it has to be opened again.
    """
    start, unit = self.start, self.stream.time_base
    seekable = self.container.format.name.startswith(_SEEKABLE)
    if time_s <= 0 or not seekable or start is None or unit is None:
      return True
    try:
      self.container.seek(int(time_s / unit) + start, stream=self.stream)
    except av.FFmpegError:
      return False
    return True

  def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decodes all following frames: (time, frame), in presentation order."""
    decoded = self.container.decode(self.stream)
    return ((self.time(f, index), f) for index, f in enumerate(decoded))

  def images(self) -> Iterator[tuple[float, RGBImage]]:
    """As `frames`: (end time, upright RGB), all of the size of the first."""
    framing = Framing()
    for begins_s, frame in self.frames():
      image = framing(frame, self.pixel_aspect)
      # The size may change within a stream.
      framing = dataclasses.replace(framing, resolution=image.shape[:2])
      yield begins_s + self.duration(frame), image


@contextlib.contextmanager
def open_video(path, num_threads: int = 1) -> Iterator[Track]:
  """Opens a video file.

  Args:
    path: the file, or an `InMemoryFile`.
    num_threads: of the decoder; 0 is one per core.

  Raises:
    VideoError: it cannot be opened as a video, or decoding it in the context
      fails.
  """
  require_file(path)
  # With "file:", a colon in the name does not start a protocol.
  source: io.BytesIO | str = (
    path.open()
    if isinstance(path, InMemoryFile)
    else png_for_ffmpeg(path) or f"file:{path}"
  )
  wrong = lambda reason: VideoError(
    path, f"not a video, or cut short: {reason}"
  )
  with foreign_errors(wrong):
    container = av.open(source, "r", metadata_errors="replace")
  with decoder_errors(path), container:
    # FFmpeg takes anything for a picture by its ending alone.
    if isinstance(source, str) and container.format.name == "image2":
      raise VideoError(path, "not a picture or video, or cut short")
    stream = _video_stream(path, container)
    stream.thread_type = "AUTO" if num_threads != 1 else "SLICE"
    stream.codec_context.thread_count = num_threads
    yield Track(path=str(path), container=container, stream=stream)


def decoder_errors(path) -> contextlib.AbstractContextManager[None]:
  """Makes a VideoError of whatever decoding or converting a frame raises."""
  return foreign_errors(
    lambda reason: VideoError(path, f"damaged: the decoder failed ({reason})")
  )


def _video_stream(path, container) -> av.VideoStream:
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
