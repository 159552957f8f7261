"""Parts videos at their cuts and finds those that stand still.

Both look at thumbnails, taken while a video is probed: it is decoded once.
"""

import dataclasses
import itertools

from jaxtyping import Float, UInt8
import numpy as np

from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.media.resize import Thumbnails
from lumiere_jax.media.video_reader import VideoInfo, probe

Images = UInt8[np.ndarray, "t h w 3"]


_SIDE = 16  # Of thumbnails, in pixels.


# Up to as many frames may flash without that being a cut.
_FLASH = 2


# A cut changes more than this many times the mean change around it, as many
# frames to either side.
_STANDS_OUT, _AROUND = 3.0, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
  """Which videos, and parts of videos, are worth training on.

  Attributes:
    scene_cuts: change from one frame to the next, in grey levels of 255, that
      counts as a cut; 0 is off.
    min_motion: least change over time, in grey levels; 0 is off.
    max_enlarge: most that a video may be enlarged to cover a clip.
    min_fps_ratio: least frame rate of a video as a share of that of the clips;
      0 is off. A slower one would show frames more than once. The default
      leaves room for 23.976 in place of 24 or 25 frames a second, and for one
      frame in twenty that was lost; 15 in place of 16 is too slow.
    whole_videos: clips of one frame stand for whole videos, as where these are
      prepared; otherwise neither frame rate nor motion matters for them.
  """

  scene_cuts: float = 0.0
  min_motion: float = 0.0
  max_enlarge: float = 4.0
  min_fps_ratio: float = 0.95
  whole_videos: bool = False

  def timed(self, spec: ClipSpec) -> bool:
    """Whether it matters for such clips how a video changes over time."""
    return spec.num_frames > 1 or self.whole_videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
  """A part of a video between cuts.

  Attributes:
    start_s: where it begins in the file.
    info: of itself.
    motion: see `motion`; None where it was not asked for.
  """

  start_s: float
  info: VideoInfo
  motion: float | None


def stretches(path, filters: Filters) -> list[Stretch]:
  """Probes a video and parts it at its cuts, if that is asked for.

  Raises:
    VideoError: it cannot be used, see `probe`.
  """
  if not filters.scene_cuts and not filters.min_motion:
    info = probe(path, num_threads=1)
    return [Stretch(start_s=0.0, info=info, motion=None)]
  thumbnails = Thumbnails(_SIDE)
  info = probe(path, num_threads=1, on_frame=thumbnails)
  images, times_s = thumbnails.images, [*thumbnails.times_s, info.duration_s]
  cuts = find_cuts(images, filters.scene_cuts) if filters.scene_cuts else []
  edges = [0, *cuts, len(images)]
  return [
    Stretch(
      start_s=times_s[first],
      info=dataclasses.replace(
        info,
        duration_s=times_s[end] - times_s[first],
        num_frames=end - first,
      ),
      motion=motion(images[first:end]),
    )
    for first, end in itertools.pairwise(edges)
  ]


def motion(images: Images) -> float:
  """How much a video changes: its standard deviation over time, in grey levels.

  Of each pixel and colour of the thumbnails; then their mean.
  """
  return float(images.std(axis=0).mean())


def find_cuts(images: Images, least: float) -> list[int]:
  """The frames that a new shot begins with.

  Args:
    images: thumbnails of all frames.
    least: see `Filters.scene_cuts`.
  """
  change = _changes(images)
  window = np.lib.stride_tricks.sliding_window_view(
    np.pad(change, _FLASH, constant_values=-1), 2 * _FLASH + 1
  )
  # Of a cut that is blended over two frames, the first.
  largest = window.argmax(axis=1) == _FLASH
  stands_out = change > np.maximum(least, _STANDS_OUT * _mean_around(change))
  return np.flatnonzero(largest & stands_out).tolist()


def _changes(images: Images) -> Float[np.ndarray, "t"]:
  """How much is new in each frame, in mean grey levels.

  The least distance from any of the frames just before it to any from it on:
  a flash, after which all is as it was, changes nothing.
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
  kernel = np.ones(2 * _AROUND + 1)
  kernel[_AROUND] = 0
  total, count = (
    np.convolve(values, kernel)[_AROUND : _AROUND + len(change)]
    for values in (change, np.ones(len(change)))
  )
  return total / np.maximum(count, 1)
