"""The video stream of an opened file, and the time of each frame.

Times are measured, not as stated: seconds since the first picture that can be
decoded, continuous even where the clock of the stream goes back or has a gap.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
from fractions import Fraction
import functools
import itertools
import math
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext

from lumiere_jax.media.input_file import RGBImage
from lumiere_jax.media.presentation import Presentation
from lumiere_jax.media.resize import Framing

TOLERANCE_S = 1e-3
"""Matroska and FLV round timestamps to milliseconds."""

_WITHOUT_TIMESTAMPS = 0x80  # libavformat's AVFMT_NOTIMESTAMPS
_UNSPECIFIED_RATE = Fraction(25)

# Formats with an index or timestamps that seeking can rely on.
_SEEKABLE = ("mov", "matroska", "avi", "flv", "mpegts")

# Formats whose timestamps only increase.
_ORDERED = ("avi", "gif", "apng")

# Seconds without a picture that are a gap. Broadcasts have a constant rate;
# elsewhere a picture may be held.
_BROADCASTS, _BROADCAST_GAP_S, _GAP_S = ("mpegts", "mpeg"), 0.5, 10.0

# Matroska has no decoding timestamps. They are guessed, and may go back a bit.
_GUESS_S = 0.5

# Where a stream was cut within a packet, one of this many before the cut is
# marked as damaged.
_CUT = 4


def frames_in(seconds: float, fps: float) -> int:
  """How many frames a video gives when resampled to `fps`; 1 at least."""
  return max(1, math.ceil((seconds - TOLERANCE_S) * fps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A part of a stream whose clock neither goes back nor has a gap.

  Attributes:
    pts: timestamp of its first picture.
    begins_s: time of that picture.
  """

  pts: int
  begins_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
  """What the packets of a stream tell of its times, undecoded.

  Attributes:
    runs: those of each recording in the file; the clock goes back in between.
    num_frames: packets with a picture that can be decoded.
    duration_s: from the first picture to the end of the last.
    keys: (number of the packet, time) of key frames.
  """

  runs: tuple[tuple[Run, ...], ...]
  num_frames: int
  duration_s: float
  keys: tuple[tuple[int, float], ...]

  def frames_at(self, fps: float) -> int:
    """How many frames resampling to `fps` gives."""
    return frames_in(self.duration_s, fps)

  @property
  def begins_s(self) -> tuple[float, ...]:
    """Times of the first picture of each run."""
    return tuple(run.begins_s for runs in self.runs for run in runs)


@dataclasses.dataclass(kw_only=True)
class Track:
  """The video stream of an opened file.

  Time 0 is the first picture that can be decoded. Where the clock of the
  stream goes back or has a gap, there is a break: the next picture is shown
  when the last one ends. Pictures that cannot be decoded, because a recording
  begins between key frames, take no time.

  Attributes:
    decoder: of the stream.
    presentation: shows decoded frames as the stream and its container state.
    measure: measures the times of the file, for streams that may break.
    left_out: packets left out so far, at the start and around breaks.
    packets_end_s: the latest end of a packet, of any stream, by their clocks.
  """

  path: Any
  container: av.container.InputContainer
  stream: av.VideoStream
  decoder: VideoCodecContext
  presentation: Presentation
  measure: Callable[[], Timeline]
  left_out: int = 0
  packets_end_s: float = 0.0
  _first_packet: int = 0
  _start: int | None = None

  @property
  def rate(self) -> Fraction:
    """Frames per second, as stated or guessed from the first frames."""
    stream = self.stream
    return stream.average_rate or stream.guessed_rate or _UNSPECIFIED_RATE

  @property
  def pixel_aspect(self) -> Fraction:
    """Width over height of one stored pixel."""
    return self.stream.sample_aspect_ratio or Fraction(1)

  @property
  def has_times(self) -> bool:
    """Whether the file has presentation times, else the frame rate gives them.

    Raw streams have no timestamps. AVI has those of decoding only, which
    differ from presentation order where there are B-frames.
    """
    kind, context = self.container.format, self.stream.codec_context
    reordered_avi = kind.name == "avi" and context.has_b_frames
    return not (kind.flags & _WITHOUT_TIMESTAMPS or reordered_avi)

  @functools.cached_property
  def may_break(self) -> bool:
    """Whether its clock may go back: no index orders all of its frames."""
    kind = self.container.format.name
    indexed = kind.startswith("mov") and self.stream.frames
    return self.has_times and not (indexed or kind in _ORDERED)

  @property
  def breaks_s(self) -> tuple[float, ...]:
    """Times of the pictures that follow a break."""
    return self._timeline.begins_s[1:] if self.may_break else ()

  @property
  def is_broadcast(self) -> bool:
    """Whether it is an MPEG stream: of a constant rate, and often cut."""
    return self.container.format.name in _BROADCASTS

  @property
  def gap_s(self) -> float:
    """Seconds without a picture that are a break."""
    return _BROADCAST_GAP_S if self.is_broadcast else _GAP_S

  @property
  def left_out_s(self) -> float:
    return self.left_out / float(self.rate)

  def duration(self, frame: av.VideoFrame) -> float:
    """Seconds that a frame is shown if no other follows."""
    if not self.has_times or not frame.duration:
      return 1 / float(self.rate)
    return float(frame.duration * self.unit)

  @functools.cached_property
  def unit(self) -> Fraction:
    """Seconds that its timestamps count."""
    return self.stream.time_base or Fraction(1)

  @functools.cached_property
  def steps_of_frame(self) -> int:
    """As `unit`s: of a packet that states no duration."""
    return round(1 / (self.rate * self.unit))

  @functools.cached_property
  def _timeline(self) -> Timeline:
    return self.measure()

  def seek(self, time_s: float) -> bool:
    """Seeks to the last key frame before `time_s`, or stays at the start.

    Returns:
      False if the file cannot seek after all; it has to be opened again.
    """
    if time_s <= 0 or not self.has_times:
      return True
    seekable = self.container.format.name.startswith(_SEEKABLE)
    if self.may_break and not (seekable and not self.breaks_s):
      keys = self._timeline.keys
      before = [number for number, at_s in keys if at_s <= time_s]
      self._first_packet = max(before, default=0)
      return True
    if not seekable:
      return True
    if self.may_break:
      start = next((r.pts for runs in self._timeline.runs for r in runs), None)
    else:
      start, index = self.stream.start_time, self.stream.index_entries
      if not index or not index[0].is_keyframe:
        with contextlib.suppress(av.FFmpegError):
          next(self.frames(), None)  # finds time 0
        start = self._start
      self._start = start
    if start is None:
      return False
    try:
      self.container.seek(int(time_s / self.unit) + start, stream=self.stream)
    except av.FFmpegError:
      return False
    self.decoder.flush_buffers()
    return True

  def packets(self) -> Iterator[tuple[int, int, av.Packet | None]]:
    """Demuxes (recording, number, packet); None ends each recording.

    Leaves out packets before the first key frame of a recording, and the last
    one before a break if it may have been cut.
    """
    recording, number, started = 0, -1, False
    last: av.Packet | None = None
    latest = -math.inf
    held: list[av.Packet] = []  # from one that is marked as damaged on
    for packet in self.container.demux():
      self.packets_end_s = max(self.packets_end_s, _end_of_packet(packet))
      ends_stream = not packet.size and packet.pts is None
      if packet.stream.index != self.stream.index or ends_stream:
        continue
      number += 1
      if last is not None and self._is_break(last, latest, packet):
        for k, item in enumerate(held[:-1], number - len(held)):
          yield recording, k, _copy(item)
        yield recording, number, None
        self.left_out += bool(held)
        held, started, recording = [], False, recording + 1
        latest = -math.inf
      last = packet
      latest = max(latest, -math.inf if packet.pts is None else packet.pts)
      started = number >= self._first_packet and (started or packet.is_keyframe)
      if not started:
        self.left_out += 1
        continue
      if recording and packet.is_discard:  # by the edit list of another
        packet = _copy(packet)
      held.append(packet)
      if not held[0].is_corrupt or len(held) > _CUT:
        for k, item in enumerate(held, number + 1 - len(held)):
          yield recording, k, item
        held = []
    for k, item in enumerate(held, number + 1 - len(held)):
      yield recording, k, item
    yield recording, number + 1, None

  def _is_break(
    self, last: av.Packet, latest: float, packet: av.Packet
  ) -> bool:
    """Whether another recording begins with `packet`."""
    if not self.may_break or last.dts is None or packet.dts is None:
      return False
    since = packet.dts - last.dts
    if since < 0:
      return self.is_broadcast or since * self.unit < -_GUESS_S
    if since <= 2 * self.steps_of_frame or not self.is_broadcast:
      return False
    # Elsewhere than at a cut, they do not skip together.
    gap = self.gap_s / float(self.unit) + (last.duration or self.steps_of_frame)
    return since > gap and packet.pts is not None and packet.pts - latest > gap

  def frames(
    self, damage: list[float] | None = None
  ) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decodes all following frames: (time, frame), in presentation order.

    Args:
      damage: collects the times of damage; None: what cannot be decoded raises.
    """
    index, time_s, ends_s = 0, 0.0, 0.0
    for recording, _, packet in self.packets():
      for frame in self.decode(packet, damage):
        if not self.has_times:
          time_s = index / float(self.rate)
        else:
          time_s = max(time_s, self._time(recording, frame, ends_s))
        index, ends_s = index + 1, time_s + self.duration(frame)
        damaged = frame.is_corrupt or (packet and packet.is_corrupt)
        if damaged and damage is not None:
          damage.append(time_s)
        yield time_s, frame

  def decode(
    self, packet: av.Packet | None, damage: list[float] | None = None
  ) -> list[av.VideoFrame]:
    """Decodes a packet to frames as they are shown; None: the rest of a run."""
    try:
      frames = self.decoder.decode(packet)
      for frame in frames:
        frame.time_base = self.unit  # the last ones have none
      return [self.presentation(frame) for frame in frames]
    except av.FFmpegError:  # the decoder goes on with the next packet
      if damage is None:
        raise
      damage.append(self.packets_end_s)
      return []
    finally:
      if packet is None:
        self.decoder.flush_buffers()

  def _time(self, recording: int, frame: av.VideoFrame, ends_s: float) -> float:
    """Its presentation time; the end of the last frame if none is stated."""
    if frame.pts is None:
      return ends_s
    if not self.may_break:
      self._start = frame.pts if self._start is None else self._start
      return float((frame.pts - self._start) * self.unit)
    if not (runs := self._timeline.runs[recording]):
      return ends_s
    time_s = time_at(runs, frame.pts, self.unit)
    # Timestamps that are guesses may be too late.
    following = itertools.chain(*self._timeline.runs[recording + 1 :])
    end_s = next((run.begins_s for run in following), math.inf)
    return min(time_s, end_s - self.duration(frame))

  def images(self, background: int = 255) -> Iterator[tuple[float, RGBImage]]:
    """As `frames`: (end time, upright RGB), all of the size of the first.

    Transparent parts show the grey level `background`.
    """
    framing = Framing(background=background)
    for begins_s, frame in self.frames():
      image = framing(frame, self.pixel_aspect)
      # The size may change within a stream.
      framing = dataclasses.replace(framing, resolution=image.shape[:2])
      yield begins_s + self.duration(frame), image


def _end_of_packet(packet: av.Packet) -> float:
  start = packet.dts if packet.pts is None else packet.pts
  if start is None or packet.time_base is None:
    return 0.0
  return (start + (packet.duration or 0)) * float(packet.time_base)


def _copy(packet: av.Packet) -> av.Packet:
  """Copies a packet without its flags, save that of a key frame."""
  copy = av.Packet(bytes(packet))
  copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
  copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
  return copy


def time_at(runs: Sequence[Run], pts: int, unit: Fraction) -> float:
  """The time of a timestamp of a recording."""
  run = next((run for run in reversed(runs) if run.pts <= pts), runs[0])
  return run.begins_s + float((pts - run.pts) * unit)
