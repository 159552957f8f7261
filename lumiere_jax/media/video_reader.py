"""Reads video files: what they hold, and clips at any frame rate and size."""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import math
from pathlib import Path

import av
from jaxtyping import UInt8
import numpy as np

from lumiere_jax.errors import UserError, VideoError, check_choice
from lumiere_jax.media.container import TOLERANCE_S, Track, open_video
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import read_npy
from lumiere_jax.media.resize import Framing, blend, upright_size
from lumiere_jax.typing import Clip

OnFrame = Callable[[float, av.VideoFrame], None]


RESAMPLING = ("nearest", "blend")
"""How frames are taken at another rate; see `read_clip`."""


# Formats that state how long they are, so that a missing end can be noticed.
_STATE_LENGTH = ("mov", "matroska", "avi")


# Seeking by decoding order can overshoot by some reordered frames, and
# transport streams have to find a key frame first: then try from farther back.
_SEEK_BACK_S = (0.0, 2.0, 10.0, math.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
  """What a video file holds, found by decoding it to its end.

  Attributes:
    duration_s: from its start until the last frame has been shown.
    num_frames: how many frames can be decoded.
    height, width: in pixels as shown: upright, with square pixels.
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
    """How many of the times k / `fps` fall within it: frames resampled.

    One of a picture, which lasts 0 seconds.
    """
    return max(1, math.ceil((self.duration_s - TOLERANCE_S) * fps))


def probe(
  path, *, num_threads: int = 0, on_frame: OnFrame = lambda time_s, frame: None
) -> VideoInfo:
  """Decodes a video to its end and measures it.

  Args:
    path: anything PyAV opens, or an animated WebP.
    num_threads: of the decoder; 0: as many as there are cores.
    on_frame: called with each frame and the time it begins to show.

  Raises:
    VideoError: the file is missing, empty, not a video, has no picture
      stream, is damaged, or ends before it says it does.
  """
  with open_video(path, num_threads) as track:
    return _measure(track, on_frame)


def _measure(track: Track, on_frame: OnFrame) -> VideoInfo:
  end_s = packets_end_s = 0.0
  num_frames, damaged, last = 0, [], None
  for packet in track.container.demux():
    # Other streams may be longer: the file's stated length is the longest.
    packets_end_s = max(packets_end_s, _end_of_packet(packet))
    if packet.stream.index != track.stream.index:
      continue
    for frame in packet.decode():
      time_s = track.time(frame, num_frames)
      if frame.is_corrupt or packet.is_corrupt:
        damaged.append(time_s)
      on_frame(time_s, frame)
      end_s = max(end_s, time_s + track.lasts(frame))
      num_frames, last = num_frames + 1, frame
  if last is None:
    raise VideoError(track.path, "no frames: nothing in it can be decoded")
  _require_whole(track, packets_end_s, end_s)
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


def _require_whole(track: Track, packets_end_s: float, end_s: float) -> None:
  """Notices that the file's last part is missing: decoders do not."""
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

  With `resample="nearest"` frame k is the picture on screen at
  `start_s + k / fps`, the last one whose timestamp is not later, so frame rates
  may be any and may vary. Frames are shrunk (antialiased) or enlarged with
  their aspect kept until they cover `resolution`, and what is to spare is cut
  off.

  With `resample="blend"` the clip begins with the picture on screen at
  `start_s`, when that begins to show. Frame k is the mean of the picture on
  screen 1 / fps later each time and the next one, weighted linearly by their
  distance in time. A rate that `fps` divides gives the pictures themselves.

  Args:
    path: anything PyAV opens, or a Blob of it.
    start_s: seconds since the start of the video.
    num_frames: t, of the clip.
    fps: frames per second, of the clip.
    resolution: (height, width) of the clip; None: that of the video.
    crop: where to cut, as fractions of what is to spare (down, across).
    resample: 'nearest' or 'blend'.
    end_s: when the next scene begins: no frame from there on is blended in.
    num_threads: of the decoder; 0: as many as there are cores.

  Returns:
    (t, h, w, 3) uint8, RGB.

  Raises:
    VideoError: the file cannot be decoded, or ends before the clip does.
    UserError: an argument is out of range.
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
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
  """As `read_clip`, one frame at a time: for parts too long for memory."""
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
    weight = shown.weight_after(time_s, end_s) if blends else 0.0
    known, images = images, {}
    for frame in (shown.frame, shown.after) if weight else (shown.frame,):
      if (image := known.get(frame)) is None:
        if frame.is_corrupt:
          raise VideoError(path, "damaged: frames of a clip cannot be decoded")
        image = framing(frame, shown.track.pixel_aspect)
        framing = dataclasses.replace(framing, resolution=image.shape[:2])
      images[frame] = image
    yield blend(*images.values(), weight) if weight else images[shown.frame]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shown:
  """A frame, from when to when it shows, and the one after it, if any."""

  track: Track
  frame: av.VideoFrame
  begins_s: float
  ends_s: float
  after: av.VideoFrame | None = None

  def weight_after(self, time_s: float, end_s: float) -> float:
    """The weight of the frame after this one, in [0, 1); 0 from `end_s` on."""
    since_s = time_s - self.begins_s
    if self.after is None or self.ends_s + TOLERANCE_S > end_s:
      return 0.0
    if since_s <= TOLERANCE_S:
      return 0.0
    return since_s / (self.ends_s - self.begins_s)


def _on_screen(
  path, times, num_threads: int, *, align: bool
) -> Iterator[tuple[_Shown, float]]:
  """For each of the increasing `times`, the frame on screen then, and the time.

  Args:
    path: see `read_clip`.
    times: in seconds.
    num_threads: of the decoder.
    align: all times are moved back until the first one is when its frame
      begins to show.
  """
  wanted = iter(times)
  time_s, end_s, early_s = next(wanted), 0.0, None
  for shown in _shown_from(path, times[0], num_threads):
    end_s = shown.ends_s
    while time_s + TOLERANCE_S < end_s:
      if early_s is None:
        early_s = max(0.0, time_s - shown.begins_s) if align else 0.0
        time_s -= early_s
      yield shown, time_s
      following = next(wanted, None)
      if following is None:
        return
      time_s = following - early_s
  raise VideoError(
    path, f"ends too early: at {end_s:.2f} s, asked for {times[-1]:.2f} s"
  )


def _shown_from(path, time_s: float, num_threads: int) -> Iterator[_Shown]:
  """All frames from a key frame at or before `time_s` on."""
  last = None
  for track, begins_s, frame in _frames_from(path, time_s, num_threads):
    if last is not None:
      values = {"ends_s": begins_s, "after": frame}
      yield dataclasses.replace(last, **values)
    ends_s = begins_s + track.lasts(frame)
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
  """Reads a whole video as it is, at its own frame rate.

  Args:
    path: an .npy file, a folder of png images in order of their names, or
      anything PyAV opens.
    num_threads: of the decoder; 0: as many as there are cores.

  Returns:
    (t, h, w, 3) uint8 and its average frames per second; None where the
    files do not say (npy, png).

  Raises:
    UserError: it cannot be read, or is no video.
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
      end_s = begins_s + track.lasts(frame)
  if not images:
    raise VideoError(path, "no frames: nothing in it can be decoded")
  return np.stack(images), len(images) / end_s


def _read_images(folder: Path) -> Clip:
  paths = sorted(p for p in folder.glob("*.png") if p.name[0] != ".")
  if not paths:
    raise VideoError(folder, "no frames: no .png files in this folder")
  images = [read_image(path) for path in paths]
  if len({image.shape for image in images}) > 1:
    raise VideoError(folder, "mixed sizes: the images must all be of one size")
  return np.stack(images)


def _read_array(path: Path) -> Clip:
  video = read_npy(path)
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise VideoError(
      path,
      f"not a video: {video.dtype} {video.shape}; save uint8 (t, h, w, 3)",
    )
  return video
