"""MultiDiffusion: denoises long or large videos in overlapping windows."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from lumiere_jax.diffusion.prediction import Denoiser, Prediction
from lumiere_jax.errors import UserError, check_choice
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

AXES = {1: "frames", 2: "rows", 3: "columns"}
"""Axes of a video (b, t, h, w, c) that windows can be cut along."""

WEIGHTS = ("uniform", "ramp")
"""How the predictions of overlapping windows are weighted."""


@typechecked
def window_starts(
  num_frames: int,
  window: int,
  overlap: int = 2,
  multiple_of: int = 1,
  spread: bool = False,
  unit: str = "frames",
  grid: int = 1,
) -> tuple[int, ...]:
  """First frames (or rows, columns) of the fewest windows that cover a video.

  Args:
    num_frames: T, of the video.
    window: T', frames of a window.
    overlap: least number of frames that neighbours share; 2 in Lumiere (App.
      C).
    multiple_of: the model's temporal factor; the window must be a multiple.
    spread: spreads the windows evenly; otherwise they are as far apart as
      `overlap` allows, and the last one is shifted back to end at T.
    unit: one of `AXES`, for errors.
    grid: windows start at multiples of it: the super-resolution factor, so that
      windows are aligned with low-resolution pixels.
  """
  what = f"window of {window} {unit}"
  if window < 1 or window % multiple_of:
    count = max(1, window // multiple_of)
    raise UserError(
      what,
      "is not a multiple of the model's "
      f"{'temporal ' if unit == 'frames' else ''}factor {multiple_of}",
      f"use {count} x {multiple_of} = {count * multiple_of} {unit}",
    )
  for name, size in (("window", window), ("video", num_frames)):
    if size % grid:
      raise UserError(
        f"{name} of {size} {unit}",
        f"is not a multiple of {grid}, the super-resolution factor",
        f"use {max(1, size // grid) * grid}",
      )
  if window > num_frames:
    raise UserError(
      what,
      f"is longer than the video of {num_frames}",
      f"use a window of at most {num_frames} {unit} or a longer video",
    )
  if not 0 <= overlap <= window - grid:
    raise UserError(
      f"overlap of {overlap} {unit}",
      f"does not fit a window of {window}",
      f"use an overlap from 0 to {window - grid}",
    )
  # In units of the grid. Rounding the stride down may increase the overlap.
  last, stride = (num_frames - window) // grid, (window - overlap) // grid
  gaps = -(-last // stride)
  if spread:
    return tuple(i * last // max(gaps, 1) * grid for i in range(gaps + 1))
  return tuple(min(i * stride, last) * grid for i in range(gaps + 1))


@typechecked
def multi_diffusion(
  denoiser: Denoiser,
  starts: Sequence[int],
  window: int,
  chunk: int = 1,
  weights: str = "uniform",
  axis: int = 1,
) -> Denoiser:
  """Averages a denoiser's predictions over overlapping windows of a video.

  The minimiser J of sum_i || W_i (F_i J - Phi(F_i z)) ||^2 (MultiDiffusion,
  Bar-Tal et al. 2023; Lumiere, section 3.2), where F_i cuts out window i: per
  frame, the mean of the windows' predictions weighted by W_i^2. It averages
  predictions, not the next z, so that the sampler's noise, drawn once for the
  whole canvas, keeps its variance where windows overlap.

  Args:
    denoiser: is called with `window` frames of video and conditioning.
    starts: see `window_starts`.
    window: frames of a window.
    chunk: windows denoised at once, folded into the batch; more need more
      memory.
    weights: W_i^2, "uniform" (the mean, as in the paper) or "ramp": decreasing
      linearly from the middle of a window to its ends, which cross-fades
      windows.
    axis: one of `AXES`; windows of rows and columns are nested denoisers.
  """
  check_choice("window weights", weights, WEIGHTS)
  if chunk < 1:
    raise UserError(f"chunk={chunk}", "is too small", "use at least 1 window")

  def averaged(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    num_frames = z.shape[axis]
    # A single window needs no scan, and stays bit-equal to the denoiser.
    if window == num_frames and tuple(starts) == (0,):
      return denoiser(z, log_snr, cond)
    shares = window_shares(starts, window, num_frames, weights)
    first = np.asarray(starts, np.int32)
    return sum_windows(denoiser, z, log_snr, cond, first, shares, chunk, axis)

  return averaged


def sum_windows(
  denoiser: Denoiser,
  z: Video,
  log_snr: PerSample,
  cond: Cond,
  starts: Int[Array | np.ndarray, "k"],
  shares: Float[Array | np.ndarray, "k window"],
  chunk: int,
  axis: int = 1,
) -> Prediction:
  """The sum of the windows' predictions, weighted by their shares.

  Args:
    denoiser, z, log_snr, cond: of all frames, see `multi_diffusion`.
    starts: first frames of the windows; may be traced.
    shares: weight of each frame of each window.
    chunk: windows denoised at once.
    axis: of the windows.
  """
  window = shares.shape[1]
  groups = _group(starts, shares, chunk)
  size, b = groups[0].shape[1], z.shape[0]

  def cut(start: Int[Array, ""]) -> tuple[Video, PerSample, Cond]:
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, window, axis)
    return take(z), log_snr, cond.map_frames(take)

  def evaluate(starts: Int[Array, "m"]) -> Prediction:
    """Predictions of one batch, ordered by window, then by sample."""
    windows = [cut(starts[i]) for i in range(size)]
    return denoiser(*jax.tree.map(lambda *x: jnp.concatenate(x), *windows))

  def add(canvas, part, start, share):
    share = jnp.expand_dims(share, tuple(range(1, 5 - axis)))
    before = jax.lax.dynamic_slice_in_dim(canvas, start, window, axis)
    after = before + share * part
    return jax.lax.dynamic_update_slice_in_dim(canvas, after, start, axis)

  def accumulate(canvas: Prediction, group: tuple) -> tuple[Prediction, None]:
    out = evaluate(group[0])
    for i in range(size):
      part = jax.tree.map(lambda x, i=i: x[i * b : (i + 1) * b], out)
      place = functools.partial(add, start=group[0][i], share=group[1][i])
      canvas = jax.tree.map(place, canvas, part)
    return canvas, None

  def blank(x: jax.ShapeDtypeStruct) -> Array:
    shape = list(x.shape)
    shape[0], shape[axis] = b, z.shape[axis]
    return jnp.zeros(shape, x.dtype)

  canvas = jax.tree.map(blank, jax.eval_shape(evaluate, groups[0][0]))
  return jax.lax.scan(accumulate, canvas, groups)[0]


def window_shares(
  starts: Sequence[int], window: int, num_frames: int, weights: str
) -> Float[np.ndarray, "k window"]:
  """Weight of each frame of each window; the weights of a frame sum to 1."""
  ramp = np.minimum(np.arange(window) + 1, window - np.arange(window))
  weight = np.ones(window) if weights == "uniform" else ramp.astype(float)
  total = np.zeros(num_frames)
  for start in starts:
    if not 0 <= start <= num_frames - window:
      raise UserError(
        f"window of {window} frames from frame {start}",
        f"exceeds the video of {num_frames}",
        "compute the starts with window_starts",
      )
    total[start : start + window] += weight
  if not total.all():
    raise UserError(
      f"frame {int(np.argmin(total))}",
      "is not covered by a window",
      "compute the starts with window_starts",
    )
  share = [weight / total[start : start + window] for start in starts]
  return np.asarray(share, np.float32)


def _group(
  starts: Int[Array | np.ndarray, "k"],
  shares: Float[Array | np.ndarray, "k window"],
  chunk: int,
) -> tuple[Int[Array, "n m"], Float[Array, "n m window"]]:
  """Groups of at most `chunk` windows, as equal as possible.

  The last one is padded to the same shape with windows of zero weight.
  """
  groups = -(-len(starts) // chunk)
  size = -(-len(starts) // groups)
  missing = groups * size - len(starts)
  starts = jnp.pad(starts, (0, missing), mode="edge")
  shares = jnp.pad(shares, ((0, missing), (0, 0)))
  return starts.reshape(groups, size), shares.reshape(groups, size, -1)
