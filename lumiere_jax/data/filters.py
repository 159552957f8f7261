"""Splits videos into shots, and measures motion on thumbnails.

The thumbnails are taken while the video is probed, so it is decoded once.
"""

import dataclasses
import itertools

import av
from jaxtyping import Float, UInt8
import numpy as np

from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.media.resize import Thumbnails
from lumiere_jax.media.video_reader import VideoInfo, probe

Images = UInt8[np.ndarray, "t h w 3"]
_SIDE = 16  # Of thumbnails, in pixels.
_FLASH = 2  # A flash of up to this many frames is no cut.

# A cut changes more than this multiple of the mean change over this many
# frames on either side.
_CONTRAST, _WINDOW = 3.0, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
  """Criteria for the videos, and shots of videos, to train on.

  Attributes:
    scene_cuts: change between frames, in grey levels of 255, that counts as a
      cut; 0 disables shot detection.
    min_motion: minimum change over time, in grey levels; 0 disables it.
    max_enlarge: maximum factor by which a video may be enlarged to cover a
      clip.
    min_fps_ratio: minimum frame rate of a video relative to that of the clips;
      0 disables it. A slower video would repeat frames. The default accepts
      23.976 for 24 or 25 fps, and one lost frame in twenty; it rejects 15 for
      16 fps.
    whole_videos: clips of one frame stand for whole videos, as in `prepare`;
      otherwise neither frame rate nor motion matters for such clips.
  """

  scene_cuts: float = 0.0
  min_motion: float = 0.0
  max_enlarge: float = 4.0
  min_fps_ratio: float = 0.95
  whole_videos: bool = False

  def is_temporal(self, spec: ClipSpec) -> bool:
    """Whether frame rate and motion matter for such clips."""
    return spec.num_frames > 1 or self.whole_videos


DEFAULT_FILTERS = Filters()
FRAME_FILTERS = "scene_cuts", "min_motion"
"""Filters that decode every frame; folders of videos and `prepare` use them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
  """A part of a video without cuts and breaks; see `motion` for its motion.

  It begins at `start_s` in the file. The motion is None if not measured.
  """

  start_s: float
  info: VideoInfo
  motion: float | None = None


def probe_shots(path, filters: Filters) -> list[Shot]:
  """Probes a video and splits it at breaks (see `Track`).

  It is also split at its cuts, if the `filters` ask for it.

  Raises:
    VideoError: it cannot be used, see `probe`.
  """
  watches = bool(filters.scene_cuts or filters.min_motion)
  thumbnails = Thumbnails(_SIDE)

  def on_frame(time_s: float, frame: av.VideoFrame) -> None:
    if watches:
      thumbnails(time_s, frame)
    else:
      thumbnails.times_s.append(time_s)

  info = probe(path, num_threads=1, on_frame=on_frame)
  images = thumbnails.images if watches else None
  times_s = [*thumbnails.times_s, info.duration_s]
  cuts = {int(np.searchsorted(times_s, at)) for at in info.breaks_s}
  if images is not None and filters.scene_cuts:
    cuts |= set(find_cuts(images, filters.scene_cuts))
  return [
    Shot(
      start_s=times_s[first],
      info=dataclasses.replace(
        info,
        duration_s=times_s[end] - times_s[first],
        num_frames=end - first,
        breaks_s=(),
      ),
      motion=None if images is None else motion(images[first:end]),
    )
    for first, end in itertools.pairwise([0, *sorted(cuts), len(times_s) - 1])
  ]


def motion(images: Images) -> float:
  """Standard deviation over time of the pixels, averaged, in grey levels."""
  return float(images.std(axis=0).mean())


def find_cuts(images: Images, least: float) -> list[int]:
  """Indices of the frames that begin a new shot; see `Filters.scene_cuts`."""
  change = _changes(images)
  window = np.lib.stride_tricks.sliding_window_view(
    np.pad(change, _FLASH, constant_values=-1), 2 * _FLASH + 1
  )
  # The first frame of a cut that is blended over two.
  largest = window.argmax(axis=1) == _FLASH
  stands_out = change > np.maximum(least, _CONTRAST * _mean_around(change))
  return np.flatnonzero(largest & stands_out).tolist()


def _changes(images: Images) -> Float[np.ndarray, "t"]:
  """Change at each frame, in mean grey levels.

  It is the minimum distance between any frame shortly before it and any frame
  from it on, so a flash, after which the picture is as before, counts nothing.
  """
  images = images.astype(np.int16)
  reach = _FLASH + 1
  change = np.full(len(images), np.inf)
  for lag in range(1, 2 * reach):
    distance = np.abs(images[lag:] - images[:-lag]).mean(axis=(1, 2, 3))
    for before in range(max(1, lag - _FLASH), min(reach, lag) + 1):
      part = change[before : before + len(distance)]
      np.minimum(part, distance, out=part)
  change[0] = 0.0
  return change


def _mean_around(change: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
  kernel = np.ones(2 * _WINDOW + 1)
  kernel[_WINDOW] = 0
  total, count = (
    np.convolve(values, kernel)[_WINDOW : _WINDOW + len(change)]
    for values in (change, np.ones(len(change)))
  )
  return total / np.maximum(count, 1)
