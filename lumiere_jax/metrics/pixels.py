"""Comparisons of videos pixel by pixel."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lumiere_jax.pipelines.told import Clip

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
