"""Opens video files, and measures their times without decoding them."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import functools
import io
import itertools
import math
import os
from typing import NamedTuple

import av
from av.sidedata import sidedata

from lumiere_jax.errors import VideoError, foreign_errors
from lumiere_jax.media.input_file import (
  InMemoryFile,
  png_for_ffmpeg,
  require_file,
)
from lumiere_jax.media.presentation import decoder, presentation
from lumiere_jax.media.track import Run, Timeline, Track, time_at


def _unnamed(kinds: type[sidedata.Type], value: int) -> sidedata.Type:
  kind = object.__new__(kinds)
  vars(kind).update(_name_=f"TYPE_{value}", _value_=value)
  return kind


# PyAV refuses frames with side data that it has no name for, such as Exif.
setattr(sidedata.Type, "_missing_", classmethod(_unnamed))  # noqa: B010


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
  opened: io.BytesIO | str = (
    path.open()
    if isinstance(path, InMemoryFile)
    else png_for_ffmpeg(path) or f"file:{path}"
  )
  wrong = lambda reason: VideoError(
    path, f"not a video, or cut short: {reason}"
  )
  with foreign_errors(wrong):
    container = av.open(opened, "r", metadata_errors="replace")
  with decoder_errors(path), container:
    # FFmpeg takes anything for a picture by its ending alone.
    if isinstance(opened, str) and container.format.name == "image2":
      raise VideoError(path, "not a picture or video, or cut short")
    stream = _video_stream(path, container)
    stream.thread_type = "AUTO" if num_threads != 1 else "SLICE"
    stream.codec_context.thread_count = num_threads
    yield Track(
      path=path,
      container=container,
      stream=stream,
      decoder=decoder(stream),
      presentation=presentation(path, container, stream),
      measure=functools.partial(measure, path),
    )


def decoder_errors(path) -> contextlib.AbstractContextManager[None]:
  """Makes a VideoError of whatever decoding or converting a frame raises."""
  return foreign_errors(
    lambda reason: VideoError(path, f"damaged: the decoder failed ({reason})")
  )


def measure(path, most_frames: float = math.inf) -> Timeline:
  """Measures the times of a video by its packets.

  Only the first picture of each recording is decoded. Stops after
  `most_frames`. The result for a file is cached until the file changes.

  Raises:
    VideoError: it cannot be opened as a video.
  """
  if isinstance(path, InMemoryFile):
    return _measure(path, most_frames)
  require_file(path)
  status = os.stat(path)
  stamp = status.st_size, status.st_mtime_ns
  return _measure_file(str(path), most_frames, stamp)


@functools.lru_cache(maxsize=1024)
def _measure_file(
  path: str, most_frames: float, stamp: tuple[int, int]
) -> Timeline:
  del stamp  # A changed file has another one.
  return _measure(path, most_frames)


def _measure(path, most_frames: float) -> Timeline:
  recordings: list[tuple[Run, ...]] = []
  keys: list[tuple[int, float]] = []
  num_frames, ends_s = 0, 0.0
  with open_video(path) as track:
    packets = itertools.takewhile(
      lambda item: item[1] <= most_frames, track.packets()
    )
    for _, items in itertools.groupby(packets, lambda item: item[0]):
      start, shown = _read_recording(track, items)
      num_frames += len(shown)
      runs: tuple[Run, ...] = ()
      if start is None or not track.has_times:
        ends_s += len(shown) / float(track.rate)
      else:
        runs, ends_s = _find_runs(track, start, shown, ends_s)
        keys += [
          (packet.number, time_at(runs, packet.pts, track.unit))
          for packet in shown
          if packet.is_key and packet.pts is not None
        ]
      recordings.append(runs)
  return Timeline(
    runs=tuple(recordings),
    num_frames=num_frames,
    duration_s=ends_s,
    keys=tuple(keys),
  )


class _Shown(NamedTuple):
  """A packet without its data, to keep many."""

  number: int
  pts: int | None
  dts: int | None
  steps: int
  is_key: bool


def _read_recording(
  track: Track, items: Iterable[tuple[int, int, av.Packet | None]]
) -> tuple[int | None, list[_Shown]]:
  """Timestamp of the first picture, and all packets; none without a picture."""
  start, pictured = None, False
  shown: list[_Shown] = []
  for _, number, packet in items:
    if packet is None or not pictured:
      frames = track.decode(packet, damage=[])
      if frames and not pictured:
        start, pictured = frames[0].pts, True
    if packet is not None:
      steps = packet.duration or track.steps_of_frame
      times = packet.pts, packet.dts, steps
      shown.append(_Shown(number, *times, packet.is_keyframe))
  return start, shown if pictured else []


def _find_runs(
  track: Track, start: int, shown: Sequence[_Shown], begins_s: float
) -> tuple[tuple[Run, ...], float]:
  """The runs of a recording that begins at `begins_s`, and when it ends."""
  runs, ends, unit = [Run(pts=start, begins_s=begins_s)], start, track.unit
  gap = track.gap_s / float(unit)
  spans = sorted((s.pts, s.steps) for s in shown if s.pts is not None)
  for pts, steps in spans:
    if pts - ends > gap:
      begins_s += float((ends - runs[-1].pts) * unit)
      runs.append(Run(pts=pts, begins_s=begins_s))
    ends = max(ends, pts + steps)
  match track.is_broadcast, shown[0], shown[-1]:
    case True, _Shown(pts=int(pts), dts=int(dts)), _Shown(dts=int(last)):
      # The last timestamps before a break are guesses, and may be too late.
      ends = min(ends, last + shown[-1].steps + pts - dts)
  return tuple(runs), begins_s + float((ends - runs[-1].pts) * unit)


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
