"""How far and how fast the object of a video moves."""

import numpy as np

from lumiere_jax.data import tracking
from lumiere_jax.data.motion import cycle
from lumiere_jax.pipelines.told import Clip

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
