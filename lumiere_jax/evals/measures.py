"""Measures of pixels and of motion."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lumiere_jax.toy_scenes import tracking
from lumiere_jax.toy_scenes.tracking import cycle
from lumiere_jax.typing import Clip

SCALE = 32
"""Displacements are in pixels of a frame with this shorter side."""
_ROUNDING = 1 / 12  # Mean square error of rounding to whole grey levels.
_NOTHING = 1e-3  # Grey levels: the floor of a measured change.
# Least standard deviation of a blinking object's visibility (0.5 if even) and
# of a swinging object's centre in frame widths (0.08 in real scenes). Below
# these, the frequency is that of noise.
_BLINKS, _SWINGS = 0.2, 0.01
_REGULAR = 0.5  # Least share of the variance that one frequency explains.


def psnr(video: np.ndarray, real: np.ndarray) -> float:
  """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape.

  At most 58.9: smaller errors count as those of rounding, so that identical
  arrays have a finite value.
  """
  error = video.astype(np.float32) - real
  square = max(float(np.mean(error**2, dtype=np.float64)), _ROUNDING)
  return float(10 * np.log10(255**2 / square))


def shrunk(video: Clip, factor: int) -> Clip:
  """Average pooling by `factor`, as in training, rounded."""
  t, h, w, c = video.shape
  parts = video.reshape(t, h // factor, factor, w // factor, factor, c)
  return np.rint(parts.mean((2, 4))).astype(np.uint8)


def bicubic(video: Clip, factor: int) -> Clip:
  """Every frame, enlarged by bicubic interpolation."""
  height, width = (factor * side for side in video.shape[1:3])
  enlarge = lambda frame: Image.fromarray(frame).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  return np.stack([np.asarray(enlarge(frame)) for frame in video])


def border_ratio(video: Clip, starts: Sequence[int], size: int) -> float:
  """Change between frames at window borders over that within windows.

  A step from one frame to the next is at a border if the two frames do not lie
  in the same set of windows. Seams make the ratio greater than 1 (Lumiere,
  Fig. 14).

  Args:
    video: uint8 (t, h, w, 3).
    starts: first frames of the windows.
    size: frames of a window.

  Returns:
    The mean absolute change of a pixel over steps at borders, over that of
    the other steps; 1 if nothing changes at all.

  Raises:
    ValueError: no step is at a border, or all are.
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
  """Change of the background over time, in grey levels of 255.

  The standard deviation over time of the background colour (the median of a
  frame's pixels), in the channel where it is largest.

  Args:
    video: uint8 (t, h, w, 3); background in more than half of the pixels.
  """
  return float(np.median(video, axis=(1, 2)).std(0).max())


def most_changed(video: Clip, levels: int) -> float:
  """The largest share of pixels in which a frame differs from the first.

  A pixel differs if any channel differs by more than `levels`.
  """
  away = np.abs(video.astype(np.int16) - video[0]).max(-1)
  return float((away > levels).reshape(len(video), -1).mean(1).max())


def main_track(video: Clip) -> tracking.Track | None:
  """The track of the object with the largest area; None: no object."""
  small = tracking.shrink(video)
  tracks = tracking.find_tracks(small, tracking.background_colour(small))
  return max(tracks, key=lambda track: track.area.sum(), default=None)


def _path(track: tracking.Track) -> np.ndarray:
  """The centres (t, 2) of an object, in pixels of a 32x32 frame."""
  return np.stack([track.x, track.y], 1) * SCALE / min(track.size)


def displacement(video: Clip) -> float:
  """Mean distance of an object from its first position.

  Over the frames that show it, between centres, in pixels of a 32x32 frame. 0
  without an object.
  """
  track = main_track(video)
  if track is None:
    return 0.0
  path = _path(track)[track.seen]
  return float(np.linalg.norm(path - path[0], axis=1).mean())


def step_at(video: Clip, frame: int) -> np.ndarray | None:
  """The step (x, y) of the object from the previous frame to this one.

  In pixels of a 32x32 frame; None if one of the two does not show the object.
  """
  track = main_track(video)
  if track is None or not track.seen[[frame - 1, frame]].all():
    return None
  path = _path(track)
  return path[frame] - path[frame - 1]


def frequency(video: Clip, motion: str, fps: float) -> float | None:
  """The dominant frequency of a video's object, in Hz.

  Args:
    video: uint8 (t, h, w, 3).
    motion: 'blinking': of its visibility; 'swinging': of its x position.
    fps: frames per second.

  Returns:
    That of the best fitting sinusoid; None if there is no object, if it hardly
    changes, or if no single frequency explains half of the variance.
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
