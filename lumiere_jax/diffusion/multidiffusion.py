"""MultiDiffusion: videos longer or wider than the windows that are denoised."""

from collections.abc import Sequence

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
  """First frames of the windows that cover a video.

  As few windows as cover it, neighbours sharing at least `overlap` frames. Of
  rows and columns it is the same.

  Args:
    num_frames: T, frames of the video.
    window: T', frames of a window.
    overlap: least number of frames neighbours share; Lumiere uses 2 (App. C).
    multiple_of: the model's temporal factor; the window must be a multiple.
    spread: spread the windows evenly; otherwise they stand as far apart as
      `overlap` allows and the last one is shifted back to end at T.
    unit: one of `AXES`, for the errors.
    grid: windows start at multiples of it; super-resolution's factor, so that
      the low-resolution pixels of a window are those of the whole frame.

  Raises:
    UserError: no such windows exist.
  """
  if window < 1 or window % multiple_of:
    raise UserError(
      "",
      f"window of {window} {unit} is not a multiple of the model's "
      f"{'temporal ' if unit == 'frames' else ''}factor {multiple_of}",
      f"use {max(1, window // multiple_of)} x {multiple_of} = "
      f"{max(1, window // multiple_of) * multiple_of} {unit}",
    )
  for what, size in (("window", window), ("video", num_frames)):
    if size % grid:
      raise UserError(
        what,
        f"of {size} {unit} is not a multiple of {grid}, which "
        "super-resolution enlarges by",
        f"use {max(1, size // grid) * grid}",
      )
  if window > num_frames:
    raise UserError(
      "",
      f"window of {window} {unit} is longer than the video of {num_frames}",
      f"use a window of at most {num_frames} {unit} or a longer video",
    )
  if not 0 <= overlap <= window - grid:
    raise UserError(
      "",
      f"overlap of {overlap} {unit} does not fit a window of {window}",
      f"use an overlap from 0 to {window - grid}",
    )
  # In steps of the grid; as neighbours are no farther apart than the overlap
  # allows, they may share a little more.
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
  frame, the mean of the windows' predictions weighted by W_i^2. Predictions
  are averaged rather than the next z, so that a sampler's noise, drawn once
  for the whole canvas, keeps its variance where windows overlap.

  Args:
    denoiser: sees `window` frames at a time, and the same frames of the
      conditioning.
    starts: first frame of each window, see `window_starts`.
    window: frames of a window.
    chunk: windows denoised at once, folded into the batch: memory grows with
      it, and the windows' results are summed up chunk by chunk.
    weights: W_i^2, "uniform" (the paper's mean) or "ramp": falling linearly
      from the middle of a window to its ends, which fades windows into each
      other.
    axis: one of `AXES`; with rows and columns, what is said of frames is true
      of these, and one such denoiser goes into the next.

  Raises:
    UserError: a bad `chunk` or `weights`, and, when called, windows that miss
      a frame of the video.
  """
  check_choice("window weights", weights, WEIGHTS)
  if chunk < 1:
    raise UserError(f"chunk={chunk}", "is too small", "use at least 1 window")

  def averaged(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    num_frames = z.shape[axis]
    # One window is no window: bit for bit, and without a scan to compile.
    if window == num_frames and tuple(starts) == (0,):
      return denoiser(z, log_snr, cond)
    shares = window_shares(starts, window, num_frames, weights)
    places = np.asarray(starts, np.int32)
    return sum_windows(denoiser, z, log_snr, cond, places, shares, chunk, axis)

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
  """Windows' predictions, each by its share, summed up where they lie.

  Args:
    denoiser: see `multi_diffusion`.
    z: (b, t, h, w, c).
    log_snr: (b,).
    cond: conditioning of all frames.
    starts: first frames of the windows; may be traced.
    shares: of each of their frames.
    chunk: windows denoised at once.
    axis: that they are cut along.
  """
  window = shares.shape[1]
  groups = _group(starts, shares, chunk)

  def evaluate(starts: Int[Array, "k"]) -> list[Prediction]:
    return _denoise_windows(denoiser, z, log_snr, cond, starts, window, axis)

  def accumulate(canvas: Prediction, group: tuple) -> tuple[Prediction, None]:
    starts, shares = group
    for i, out in enumerate(evaluate(starts)):
      canvas = _add_window(canvas, out, starts[i], shares[i], axis)
    return canvas, None

  one = jax.eval_shape(evaluate, groups[0][0])[0]
  canvas = jax.tree.map(
    lambda x: jnp.zeros(
      (*x.shape[:axis], z.shape[axis], *x.shape[axis + 1 :]), x.dtype
    ),
    one,
  )
  return jax.lax.scan(accumulate, canvas, groups)[0]


def window_shares(
  starts: Sequence[int], window: int, num_frames: int, weights: str
) -> Float[np.ndarray, "k window"]:
  """Each window's share in the mean of each of its frames; they sum to 1.

  Raises:
    UserError: windows leave the video or miss a frame of it.
  """
  ramp = np.minimum(np.arange(window) + 1, window - np.arange(window))
  weight = np.ones(window) if weights == "uniform" else ramp.astype(float)
  total = np.zeros(num_frames)
  for start in starts:
    if not 0 <= start <= num_frames - window:
      raise UserError(
        "",
        f"window of {window} frames from frame {start} leaves the video "
        f"of {num_frames}",
        "make the starts with window_starts",
      )
    total[start : start + window] += weight
  if not total.all():
    raise UserError(
      "",
      f"no window covers frame {int(np.argmin(total))}",
      "make the starts with window_starts",
    )
  share = [weight / total[start : start + window] for start in starts]
  return np.asarray(share, np.float32)


def _group(
  starts: Int[Array | np.ndarray, "k"],
  shares: Float[Array | np.ndarray, "k window"],
  chunk: int,
) -> tuple[Int[Array, "n m"], Float[Array, "n m window"]]:
  """Groups of at most `chunk` windows, as equal as can be.

  The last one is filled up with windows that have no share in the mean: one
  scan body then serves all groups.
  """
  groups = -(-len(starts) // chunk)
  size = -(-len(starts) // groups)
  missing = groups * size - len(starts)
  starts = jnp.pad(starts, (0, missing), mode="edge")
  shares = jnp.pad(shares, ((0, missing), (0, 0)))
  return starts.reshape(groups, size), shares.reshape(groups, size, -1)


def _denoise_windows(
  denoiser: Denoiser,
  z: Video,
  log_snr: PerSample,
  cond: Cond,
  starts: Int[Array, "k"],
  window: int,
  axis: int,
) -> list[Prediction]:
  """Denoises windows as one batch, all samples of a window side by side."""

  def cut(start: Int[Array, ""]) -> tuple[Video, PerSample, Cond]:
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, window, axis)
    return take(z), log_snr, cond.map_frames(take)

  windows = [cut(starts[i]) for i in range(starts.shape[0])]
  out = denoiser(*jax.tree.map(lambda *x: jnp.concatenate(x), *windows))
  b = z.shape[0]
  of_window = lambda i: jax.tree.map(lambda x: x[i * b : (i + 1) * b], out)
  return [of_window(i) for i in range(len(windows))]


def _add_window(
  canvas: Prediction,
  out: Prediction,
  start: Int[Array, ""],
  share: Float[Array, "window"],
  axis: int,
) -> Prediction:
  """Adds a window's prediction, by its share, to its frames of the canvas."""
  beside = tuple(range(1, 5 - axis))

  def add(whole: Video, part: Video) -> Video:
    size = part.shape[axis]
    before = jax.lax.dynamic_slice_in_dim(whole, start, size, axis)
    after = before + jnp.expand_dims(share, beside) * part
    return jax.lax.dynamic_update_slice_in_dim(whole, after, start, axis)

  return jax.tree.map(add, canvas, out)
