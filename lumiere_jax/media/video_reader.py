"""Reads video files: probes them, and reads clips at any rate and size."""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import math
from pathlib import Path

import av
import numpy as np

from lumiere_jax.errors import UserError, VideoError, check_choice
from lumiere_jax.media.container import TOLERANCE_S, Track, open_video
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import RGBImage, png_files, read_npy
from lumiere_jax.media.resize import Framing, blend, upright_size
from lumiere_jax.typing import Clip

OnFrame = Callable[[float, av.VideoFrame], None]

RESAMPLING = ("nearest", "blend")
"""How frames are resampled to another rate; see `read_clip`."""

# Formats that state their length, so that a missing end can be detected.
_STATE_LENGTH = ("mov", "matroska", "avi")

# Seeking can overshoot, by reordered frames or because transport streams have
# to find a key frame first. It is then tried again from farther back.
_SEEK_BACK_S = (0.0, 2.0, 10.0, math.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
  """Measurements of a fully decoded video file.

  Attributes:
    duration_s: from its start to the end of the last frame.
    num_frames: decodable frames.
    height, width: in pixels as displayed: upright, with square pixels.
  """

  duration_s: float
  num_frames: int
  height: int
  width: int

  @property
  def fps(self) -> float:
    """Frames per second, on average."""
    return self.num_frames / self.duration_s

  def frames_at(self, fps: float) -> int:
    """How many frames resampling to `fps` gives; 1 for a picture."""
    return max(1, math.ceil((self.duration_s - TOLERANCE_S) * fps))


def probe(
  path, *, num_threads: int = 0, on_frame: OnFrame = lambda time_s, frame: None
) -> VideoInfo:
  """Decodes a video to its end and measures it.

  Args:
    path: anything PyAV opens, or an animated WebP.
    num_threads: of the decoder; 0 is one per core.
    on_frame: called with the presentation time of each frame and the frame.

  Raises:
    VideoError: the file is not a video, is damaged, or ends before the length
      that it states.
  """
  with open_video(path, num_threads) as track:
    return _measure(track, on_frame)


def _measure(track: Track, on_frame: OnFrame) -> VideoInfo:
  end_s = packets_end_s = 0.0
  num_frames, damaged, last = 0, [], None
  for packet in track.container.demux():
    # Other streams may be longer: the file states the length of the longest.
    packets_end_s = max(packets_end_s, _end_of_packet(packet))
    if packet.stream.index != track.stream.index:
      continue
    try:
      frames = packet.decode()
    except av.FFmpegError:  # the decoder goes on with the next packet
      damaged.append(packets_end_s)
      continue
    for frame in frames:
      time_s = track.time(frame, num_frames)
      if frame.is_corrupt or packet.is_corrupt:
        damaged.append(time_s)
      on_frame(time_s, frame)
      end_s = max(end_s, time_s + track.duration(frame))
      num_frames, last = num_frames + 1, frame
  if last is None:
    kind = "damaged" if damaged else "no frames"
    raise VideoError(track.path, f"{kind}: nothing in it can be decoded")
  _check_complete(track, packets_end_s, end_s)
  if damaged:
    raise VideoError(
      track.path,
      f"damaged: {len(damaged)} of {num_frames} frames, the first at "
      f"{damaged[0]:.2f} s; cut or re-encode it",
    )
  height, width = upright_size(last, track.pixel_aspect)
  return VideoInfo(
    duration_s=end_s, num_frames=num_frames, height=height, width=width
  )


def _end_of_packet(packet: av.Packet) -> float:
  start = packet.dts if packet.pts is None else packet.pts
  if start is None:
    return 0.0
  return float((start + (packet.duration or 0)) * packet.time_base)


def _check_complete(track: Track, packets_end_s: float, end_s: float) -> None:
  """Raises if the end of the file is missing, which decoders ignore."""
  container, stream = track.container, track.stream
  if not container.format.name.startswith(_STATE_LENGTH):
    return
  stated_s = (container.duration or 0) / av.time_base
  if container.format.name == "avi":
    stated_s = stream.frames / float(track.rate)
  if packets_end_s < stated_s - max(0.5, 0.05 * stated_s):
    raise VideoError(
      track.path,
      f"truncated: {end_s:.2f} s of the {stated_s:.2f} s it states; "
      "copy or download it again",
    )


def read_clip(
  path,
  *,
  start_s: float,
  num_frames: int,
  fps: float,
  resolution: tuple[int, int] | None = None,
  crop: tuple[float, float] = (0.5, 0.5),
  resample: str = "nearest",
  end_s: float = math.inf,
  num_threads: int = 1,
) -> Clip:
  """Reads a part of a video, resampled in time and space.

  Frames are resized (antialiased) to cover `resolution`, with their aspect
  ratio kept, and cropped. Frame rates may vary.

  With `resample="nearest"` frame k is the one on screen at
  `start_s + k / fps`: the last whose timestamp is not later. With "blend" the
  clip starts at the presentation time of the frame on screen at `start_s`, and
  frame k interpolates linearly in time between the frame on screen k / fps
  later and the next one. A rate that `fps` divides gives unchanged frames.

  Args:
    path: anything PyAV opens, or an `InMemoryFile` of it.
    start_s: seconds since the start of the video.
    num_frames: t, of the clip.
    fps: frames per second, of the clip.
    resolution: (height, width) of the clip; None keeps that of the video.
    crop: position of the crop window; see `Framing`.
    resample: 'nearest' or 'blend'.
    end_s: start of the next scene, whose frames are not blended in.
    num_threads: of the decoder; 0 is one per core.

  Returns:
    (t, h, w, 3) uint8, RGB.

  Raises:
    VideoError: the file cannot be decoded, or ends before the clip does.
  """
  framing = Framing(resolution=resolution, crop=crop)
  frames = read_frames(
    path,
    start_s=start_s,
    num_frames=num_frames,
    fps=fps,
    framing=framing,
    resample=resample,
    end_s=end_s,
    num_threads=num_threads,
  )
  return np.stack(list(frames))


def read_frames(
  path,
  *,
  start_s: float,
  num_frames: int,
  fps: float,
  framing: Framing,
  resample: str = "nearest",
  end_s: float = math.inf,
  num_threads: int = 1,
) -> Iterator[RGBImage]:
  """As `read_clip`, one frame at a time, for clips that exceed memory."""
  check_choice("resample", resample, RESAMPLING)
  if num_frames < 1 or fps <= 0 or start_s < 0:
    raise UserError(
      f"{path}:",
      f"cannot read {num_frames} frames at {fps} fps from {start_s} s on",
      "give 1 frame or more, fps above 0 and a start of 0 or more",
    )
  times = start_s + np.arange(num_frames) / fps
  blends = resample == "blend"
  images: dict[av.VideoFrame, np.ndarray] = {}
  for shown, time_s in _on_screen(path, times, num_threads, align=blends):
    weight = shown.weight_of_following(time_s, end_s) if blends else 0.0
    cached, images = images, {}
    for frame in (shown.frame, shown.following) if weight else (shown.frame,):
      if (image := cached.get(frame)) is None:
        if frame.is_corrupt:
          raise VideoError(
            path, "damaged: a frame of the clip cannot be decoded"
          )
        image = framing(frame, shown.track.pixel_aspect)
        framing = dataclasses.replace(framing, resolution=image.shape[:2])
      images[frame] = image
    yield blend(*images.values(), weight) if weight else images[shown.frame]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shown:
  """A frame, when it is shown, and the frame that follows it, if any."""

  track: Track
  frame: av.VideoFrame
  begins_s: float
  ends_s: float
  following: av.VideoFrame | None = None

  def weight_of_following(self, time_s: float, end_s: float) -> float:
    """The weight of the next frame in a blend: [0, 1), and 0 from `end_s`."""
    since_s = time_s - self.begins_s
    scene_ends = self.ends_s + TOLERANCE_S > end_s
    if self.following is None or scene_ends or since_s <= TOLERANCE_S:
      return 0.0
    return since_s / (self.ends_s - self.begins_s)


def _on_screen(
  path, times, num_threads: int, *, align: bool
) -> Iterator[tuple[_Shown, float]]:
  """For each of the increasing `times`: the frame on screen then, and the time.

  With `align`, all times move back so that the first is the start of a frame.
  """
  remaining = iter(times)
  time_s, end_s, offset_s = next(remaining), 0.0, None
  for shown in _shown_from(path, times[0], num_threads):
    end_s = shown.ends_s
    while time_s + TOLERANCE_S < end_s:
      if offset_s is None:
        offset_s = max(0.0, time_s - shown.begins_s) if align else 0.0
        time_s -= offset_s
      yield shown, time_s
      if (next_s := next(remaining, None)) is None:
        return
      time_s = next_s - offset_s
  raise VideoError(
    path, f"ends too early: at {end_s:.2f} s, asked for {times[-1]:.2f} s"
  )


def _shown_from(path, time_s: float, num_threads: int) -> Iterator[_Shown]:
  """All frames from a key frame at or before `time_s` on."""
  last = None
  for track, begins_s, frame in _frames_from(path, time_s, num_threads):
    if last is not None:
      yield dataclasses.replace(last, ends_s=begins_s, following=frame)
    ends_s = begins_s + track.duration(frame)
    last = _Shown(track=track, frame=frame, begins_s=begins_s, ends_s=ends_s)
  if last is not None:
    yield last


def _frames_from(path, time_s: float, num_threads: int):
  """Yields (track, time, frame) from a key frame at or before `time_s` on."""
  for back_s in _SEEK_BACK_S:
    with open_video(path, num_threads) as track:
      found = track.seek(time_s - back_s)
      frames = track.frames()
      first = list(itertools.islice(frames, found))
      overshot = not first or first[0][0] > time_s + TOLERANCE_S
      if overshot and back_s < math.inf:
        continue
      for begins_s, frame in itertools.chain(first, frames):
        yield track, begins_s, frame
      return


def read_video(path, *, num_threads: int = 0) -> tuple[Clip, float | None]:
  """Reads a whole video at its own size and frame rate.

  Args:
    path: an .npy file, a folder of png images in order of their names, or
      anything PyAV opens.
    num_threads: of the decoder; 0 is one per core.

  Returns:
    (t, h, w, 3) uint8 and its average frames per second, None for arrays and
    folders, which have no rate.
  """
  path = Path(path)
  if path.is_dir():
    return _read_images(path), None
  if path.suffix.lower() == ".npy":
    return _read_array(path), None
  framing, images, end_s = Framing(), [], 0.0
  with open_video(path, num_threads) as track:
    for begins_s, frame in track.frames():
      images.append(framing(frame, track.pixel_aspect))
      framing = dataclasses.replace(framing, resolution=images[0].shape[:2])
      end_s = begins_s + track.duration(frame)
  if not images:
    raise VideoError(path, "no frames: nothing in it can be decoded")
  return np.stack(images), len(images) / end_s


def _read_images(folder: Path) -> Clip:
  images = [read_image(path) for path in png_files(folder)]
  if len({image.shape for image in images}) > 1:
    raise VideoError(folder, "mixed sizes: all images must have one size")
  return np.stack(images)


def _read_array(path: Path) -> Clip:
  video = read_npy(path)
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise VideoError(
      path, f"not a video: {video.dtype} {video.shape}; save uint8 (t, h, w, 3)"
    )
  return video
