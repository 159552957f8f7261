"""Measures of pixels and of movement."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lumiere_jax.toy_scenes import tracking
from lumiere_jax.toy_scenes.tracking import cycle
from lumiere_jax.typing import Clip

_ROUNDING = 1 / 12  # Mean square error of rounding to whole grey levels.


_NOTHING = 1e-3  # Grey levels; what changes less does not change.


def psnr(video: np.ndarray, real: np.ndarray) -> float:
  """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape.

  At most 58.9: differences below those of rounding count as these, so that
  the same pixels have a number too.
  """
  error = video.astype(np.float32) - real
  square = max(float(np.mean(error**2, dtype=np.float64)), _ROUNDING)
  return float(10 * np.log10(255**2 / square))


def shrunk(video: Clip, factor: int) -> Clip:
  """Each pixel the mean of factor x factor, as in training, rounded."""
  t, h, w, c = video.shape
  parts = video.reshape(t, h // factor, factor, w // factor, factor, c)
  return np.rint(parts.mean((2, 4))).astype(np.uint8)


def bicubic(video: Clip, factor: int) -> Clip:
  """Every frame enlarged by bicubic interpolation."""
  height, width = (factor * side for side in video.shape[1:3])
  enlarge = lambda frame: Image.fromarray(frame).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  return np.stack([np.asarray(enlarge(frame)) for frame in video])


def border_ratio(video: Clip, starts: Sequence[int], size: int) -> float:
  """How much more a video changes where its windows do than within them.

  A step from one frame to the next is at a border if they lie in different
  windows, or in other ones besides. Seams that a video has there make the
  ratio greater than 1 (Lumiere, Fig. 14).

  Args:
    video: uint8 (t, h, w, 3).
    starts: first frames of the windows.
    size: frames of a window.

  Returns:
    The mean absolute change of a pixel over steps at borders, over that of
    the other steps; 1 where nothing changes at all.

  Raises:
    ValueError: no step is at a border, or every one is.
  """
  frames = np.arange(len(video))[:, None]
  lies_in = (frames >= starts) & (frames < np.asarray(starts) + size)
  border = (lies_in[1:] != lies_in[:-1]).any(1)
  if border.all() or not border.any():
    raise ValueError(f"windows of {size} frames from {starts} have no borders")
  steps = np.abs(np.diff(video.astype(np.int16), axis=0)).mean((1, 2, 3))
  at, within = steps[border].mean(), steps[~border].mean()
  return float((at + _NOTHING) / (within + _NOTHING))


def flicker(video: Clip) -> float:
  """How much the background changes over time, in grey levels of 255.

  The standard deviation of its colour, the median of a frame's pixels, in the
  channel where that is largest.

  Args:
    video: uint8 (t, h, w, 3); the background covers more than half of it.
  """
  return float(np.median(video, axis=(1, 2)).std(0).max())


def most_changed(video: Clip, levels: int) -> float:
  """The share of pixels that a frame differs in from the first one, at most.

  Args:
    video: uint8 (t, ..., 3).
    levels: what differs by more, in any colour, differs.
  """
  away = np.abs(video.astype(np.int16) - video[0]).max(-1)
  return float((away > levels).reshape(len(video), -1).mean(1).max())


SCALE = 32
"""Displacements are in pixels of a frame whose shorter side has so many."""


# Below these nothing blinks or swings, whatever frequency its noise has: the
# deviation of being there (0.5 of even blinking), and that of the middle in
# frames (0.08 of real swinging).
_BLINKS, _SWINGS = 0.2, 0.01


_REGULAR = 0.5  # Least share of the variance that one frequency explains.


def main_track(video: Clip) -> tracking.Track | None:
  """The object that covers most of a video; None: it shows none."""
  small = tracking.shrink(video)
  tracks = tracking.find_tracks(small, tracking.background_colour(small))
  return max(tracks, key=lambda track: track.area.sum(), default=None)


def displacement(video: Clip) -> float:
  """How far an object is from where it was at first, on average over time.

  The mean over the frames that show it of the distance of its middle from
  its middle in the first of them, in pixels of a frame of 32x32. 0 without an
  object.
  """
  track = main_track(video)
  if track is None:
    return 0.0
  path = np.stack([track.x, track.y], 1)[track.seen]
  away = np.linalg.norm(path - path[0], axis=1)
  return float(away.mean()) * SCALE / min(track.size)


def step_at(video: Clip, frame: int) -> np.ndarray | None:
  """How far (x, y) the object moves from the frame before to this one.

  In pixels of a frame of 32x32; None where one of the two does not show it.
  """
  track = main_track(video)
  if track is None or not track.seen[[frame - 1, frame]].all():
    return None
  path = np.stack([track.x, track.y], 1)
  return (path[frame] - path[frame - 1]) * SCALE / min(track.size)


def frequency(video: Clip, motion: str, fps: float) -> float | None:
  """The dominant frequency of the object of a video, in cycles a second.

  Args:
    video: uint8 (t, h, w, 3).
    motion: 'blinking': of its being there; 'swinging': of its place in x.
    fps: frames a second.

  Returns:
    That of the sinusoid that fits best; None where there is no object, it
    hardly changes, or no one frequency explains half of how it does.
  """
  track = main_track(video)
  if track is None:
    return None
  seconds = np.arange(len(video)) / fps
  if motion == "blinking":
    signal, least = track.seen.astype(float), _BLINKS
  else:
    signal, least = track.x[track.whole] / track.size[1], _SWINGS
    seconds = seconds[track.whole]
  if not signal.size or signal.std() < least:
    return None
  rate, explained = cycle(signal, seconds)
  return rate if explained >= _REGULAR else None
