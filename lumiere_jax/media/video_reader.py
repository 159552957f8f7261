"""Reads video files: probes them, and reads clips at any rate and size."""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import av
import numpy as np

from lumiere_jax.errors import UserError, VideoError, check_choice
from lumiere_jax.media.container import decoder_errors, open_video
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import RGBImage, png_files, read_npy
from lumiere_jax.media.resize import Framing, blend, upright_size
from lumiere_jax.media.track import TOLERANCE_S, Track, frames_in
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
    duration_s: from its first frame to the end of the last.
    num_frames: decodable frames.
    height, width: in pixels as displayed: upright, with square pixels.
    breaks_s: times of frames that do not continue the one before; see `Track`.
    left_out_s: length of the parts that cannot be decoded for lack of a key
      frame, at the start or after a break; not part of the duration.
  """

  duration_s: float
  num_frames: int
  height: int
  width: int
  breaks_s: tuple[float, ...] = ()
  left_out_s: float = 0.0

  @property
  def fps(self) -> float:
    """Frames per second, on average."""
    return self.num_frames / self.duration_s

  def frames_at(self, fps: float) -> int:
    """How many frames resampling to `fps` gives; 1 for a picture."""
    return frames_in(self.duration_s, fps)


def probe(
  path, *, num_threads: int = 0, on_frame: OnFrame = lambda time_s, frame: None
) -> VideoInfo:
  """Decodes a video to its end and measures it.

  Args:
    path: anything PyAV or Pillow opens.
    num_threads: of the decoder; 0 is one per core.
    on_frame: called with the presentation time of each frame and the frame.

  Raises:
    VideoError: the file is not a video, is damaged, or ends before the length
      that it states.
  """
  end_s, num_frames, size = 0.0, 0, (0, 0)
  damaged: list[float] = []
  with open_video(path, num_threads) as track:
    for time_s, frame in track.frames(damaged):
      on_frame(time_s, frame)
      end_s = max(end_s, time_s + track.duration(frame))
      size = upright_size(frame, track.pixel_aspect)
      num_frames += 1
    if not num_frames:
      kind = "damaged" if damaged else "no frames"
      if track.left_out:
        kind = "damaged: it has no whole key frame"
      raise VideoError(path, f"{kind}: nothing in it can be decoded")
    _check_complete(track, end_s)
    breaks_s, left_out_s = track.breaks_s, track.left_out_s
  if damaged:
    raise VideoError(
      path,
      f"damaged: {len(damaged)} of {num_frames} frames, the first at "
      f"{damaged[0]:.2f} s; cut or re-encode it",
    )
  return VideoInfo(
    duration_s=end_s,
    num_frames=num_frames,
    height=size[0],
    width=size[1],
    breaks_s=breaks_s,
    left_out_s=left_out_s,
  )


def _check_complete(track: Track, end_s: float) -> None:
  """Raises if the end of the file is missing, which decoders ignore."""
  container, stream = track.container, track.stream
  if not container.format.name.startswith(_STATE_LENGTH):
    return
  stated_s = (container.duration or 0) / av.time_base
  if container.format.name == "avi":
    stated_s = stream.frames / float(track.rate)
  # Other streams may be longer: the file states the length of the longest.
  if track.packets_end_s < stated_s - max(0.5, 0.05 * stated_s):
    raise VideoError(
      track.path,
      f"truncated: {end_s:.2f} s of the {stated_s:.2f} s it states; "
      "copy or download it again",
    )


def read_clip(path, **options: Any) -> Clip:
  """Reads a clip (t, h, w, 3) at once; for its `options`, see `read_frames`."""
  return np.stack(list(read_frames(path, **options)))


def read_frames(
  path,
  *,
  start_s: float,
  num_frames: int,
  fps: float,
  resolution: tuple[int, int] | None = None,
  crop: tuple[float, float] = (0.5, 0.5),
  resample: str = "nearest",
  end_s: float = math.inf,
) -> Iterator[RGBImage]:
  """Reads a part of a video, resampled in time and space, frame by frame.

  Time is continuous across breaks (see `Track`), where nothing is blended.
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

  Raises:
    VideoError: the file cannot be decoded, or ends before the clip does.
  """
  check_choice("resample", resample, RESAMPLING)
  if num_frames < 1 or fps <= 0 or start_s < 0:
    raise UserError(
      f"{path}:",
      f"cannot read {num_frames} frames at {fps} fps from {start_s} s on",
      "give 1 frame or more, fps above 0 and a start of 0 or more",
    )
  framing = Framing(resolution=resolution, crop=crop)
  times = start_s + np.arange(num_frames) / fps
  blends = resample == "blend"
  images: dict[av.VideoFrame, RGBImage] = {}
  for shown, time_s in _on_screen(path, times, align=blends):
    weight = shown.weight_of_following(time_s, end_s) if blends else 0.0
    cached, images = images, {}
    for frame in (shown.frame, shown.following)[: 2 if weight else 1]:
      if frame in cached:
        images[frame] = cached[frame]
        continue
      if frame.is_corrupt:
        raise VideoError(path, "damaged: a frame of the clip cannot be decoded")
      with decoder_errors(path):
        image = images[frame] = framing(frame, shown.track.pixel_aspect)
      framing = dataclasses.replace(framing, resolution=image.shape[:2])
    now, following = images[shown.frame], images.get(shown.following)
    yield now if following is None else blend(now, following, weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shown:
  """A frame, when it is shown, and the frame that follows it, or itself."""

  track: Track
  frame: av.VideoFrame
  begins_s: float
  ends_s: float
  following: av.VideoFrame

  def weight_of_following(self, time_s: float, end_s: float) -> float:
    """The weight of the next frame in a blend: [0, 1), and 0 from `end_s`."""
    since_s = time_s - self.begins_s
    scene_ends = self.ends_s + TOLERANCE_S > end_s
    if self.following is self.frame or scene_ends or since_s <= TOLERANCE_S:
      return 0.0
    return since_s / (self.ends_s - self.begins_s)


def _on_screen(
  path, times: np.ndarray, *, align: bool
) -> Iterator[tuple[_Shown, float]]:
  """For each of the increasing `times`: the frame on screen then, and the time.

  With `align`, all times move back so that the first is the start of a frame.
  """
  shown, shift_s = None, 0.0
  frames = _shown_from(path, times[0])
  for k, time_s in enumerate(times):
    while shown is None or time_s - shift_s + TOLERANCE_S >= shown.ends_s:
      if (following := next(frames, None)) is None:
        end_s = shown.ends_s if shown else 0.0
        raise VideoError(
          path, f"ends too early: at {end_s:.2f} s, asked for {times[-1]:.2f} s"
        )
      shown = following
    if align and not k:
      shift_s = max(0.0, time_s - shown.begins_s)
    yield shown, time_s - shift_s


def _shown_from(path, time_s: float) -> Iterator[_Shown]:
  """All frames from a key frame at or before `time_s` on."""
  last = None
  for track, begins_s, frame in _frames_from(path, time_s):
    if last is not None and begins_s in track.breaks_s:
      yield dataclasses.replace(last, ends_s=begins_s)
    elif last is not None:
      yield dataclasses.replace(last, ends_s=begins_s, following=frame)
    ends_s = begins_s + track.duration(frame)
    last = _Shown(
      track=track,
      frame=frame,
      begins_s=begins_s,
      ends_s=ends_s,
      following=frame,
    )
  if last is not None:
    yield last


def _frames_from(
  path, time_s: float
) -> Iterator[tuple[Track, float, av.VideoFrame]]:
  """(track, time, frame) from a key frame at or before `time_s` on."""
  for back_s in _SEEK_BACK_S:
    with open_video(path) as track:
      found = track.seek(time_s - back_s)
      frames = track.frames()
      first = list(itertools.islice(frames, found))
      overshot = not first or first[0][0] > time_s + TOLERANCE_S
      if overshot and back_s < math.inf:
        continue
      for begins_s, frame in itertools.chain(first, frames):
        yield track, begins_s, frame
      return


def read_video(path) -> tuple[Clip, float | None]:
  """Reads a whole video at its own size and frame rate.

  Args:
    path: an .npy file, a folder of png images in order of their names, or
      anything PyAV opens.

  Returns:
    (t, h, w, 3) uint8 and its average frames per second, None for arrays and
    folders, which have no rate.
  """
  path = Path(path)
  if path.is_dir():
    images = [read_image(file) for file in png_files(path)]
    if len({image.shape for image in images}) > 1:
      raise VideoError(path, "mixed sizes: all images must have one size")
    return np.stack(images), None
  if path.suffix.lower() == ".npy":
    video = read_npy(path)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
      kind = f"{video.dtype} {video.shape}"
      raise VideoError(path, f"not a video: {kind}; save uint8 (t, h, w, 3)")
    return video, None
  with open_video(path, num_threads=0) as track:
    found = list(track.images())
  if not found:
    raise VideoError(path, "no frames: nothing in it can be decoded")
  return np.stack([image for _, image in found]), len(found) / found[-1][0]
