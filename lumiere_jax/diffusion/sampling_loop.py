"""The sampling loop: a scan over steps, and a loop on the host around it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from lumiere_jax.diffusion.noise import Keys, frame_noise
from lumiere_jax.diffusion.prediction import Denoiser, Prediction
from lumiere_jax.diffusion.samplers import LogSNR, Sampler, State
from lumiere_jax.diffusion.schedules import Schedule
from lumiere_jax.errors import UserError, option
from lumiere_jax.typing import Cond, Video, typechecked


def part_way(
  log_snrs: Float[Array | np.ndarray, "n"],
  strength: float,
  schedule: Schedule,
  *,
  rounded: bool,
) -> Float[np.ndarray, "m"]:
  """The noise levels to edit a video with SDEdit (Meng et al. 2021).

  Args:
    log_snrs: (steps + 1,) increasing; the last one is infinite. Kept are those
      cleaner than the first level.
    strength: in (0, 1], the time of the first level; 1 is all levels.
    schedule: gives the log-SNR of a time.
    rounded: starts at the nearest level of the grid instead.
  """
  if not 0 < strength <= 1:
    raise UserError(
      option("strength", f"{strength:g}"),
      "is not in (0, 1]",
      "1 keeps nothing of the video, a small value nearly all",
    )
  levels = np.asarray(log_snrs)
  if strength == 1:
    return levels
  if rounded:
    times = np.asarray(schedule.time(jnp.asarray(levels[:-1])))
    return levels[int(np.argmin(np.abs(times - strength))) :]
  first = np.float32(schedule.log_snr(jnp.float32(strength)))
  return np.append(first, levels[levels > first + 1e-3])


@typechecked
def sample_chunk(
  denoiser: Denoiser,
  sampler: Sampler,
  state: State,
  log_snrs: Float[Array, "n"],
  first_step: int | Int[Array, ""],
  keys: Keys,
  cond: Cond,
  first_frame: int | Int[Array, ""] = 0,
) -> State:
  """Runs consecutive sampling steps as one scan; to be jitted by the caller.

  Args:
    denoiser: network with guidance, windows and thresholding around it.
    sampler: static.
    state: `sampler.init(z)`, or the result of the previous chunk.
    log_snrs: (steps of this chunk + 1,) noise levels.
    first_step: number of the chunk's first step; noise is keyed by it, so that
      it does not depend on the chunk size.
    keys: of the samples.
    cond: conditioning.
    first_frame: number of the first frame of z in a video whose frames are
      sharded.
  """
  _, num_frames, height, width, channels = state.z.shape
  size = height, width, channels

  def denoise(z: Video, log_snr: LogSNR) -> Prediction:
    return denoiser(z, jnp.full(z.shape[:1], log_snr), cond)

  def body(state: State, step: tuple) -> tuple[State, None]:
    number, log_snr_t, log_snr_s = step
    noise = frame_noise(keys, number, num_frames, size, first_frame)
    return sampler.advance(denoise, state, log_snr_t, log_snr_s, noise), None

  numbers = first_step + jnp.arange(log_snrs.shape[0] - 1)
  steps = (numbers, log_snrs[:-1], log_snrs[1:])
  return jax.lax.scan(body, state, steps)[0]


def chunk_size(steps: int, most: int) -> int:
  """The largest divisor of `steps` up to `most`, for chunks of equal size."""
  if most < 1:
    raise UserError(f"chunk={most}", "is too small", "use at least 1 step")
  return max(d for d in range(1, min(most, steps) + 1) if steps % d == 0)


def sample(
  chunk_fn: Callable[[State, np.ndarray, np.int32], State],
  state: State,
  log_snrs: Float[Array | np.ndarray, "n"],
  chunk: int,
  callback: Callable[[int, Video], bool | None] | None = None,
) -> Video:
  """Runs all steps in equal chunks, with a callback on the host in between.

  Args:
    chunk_fn: `chunk_fn(state, log_snrs, first_step)`: a jitted `sample_chunk`
      with the other arguments bound.
    state: `sampler.init(z)`.
    log_snrs: (steps + 1,) all noise levels.
    chunk: most steps per chunk; see `chunk_size`.
    callback: called as `callback(steps done, z)` after every chunk, for
      progress and previews. If it returns True, the current z is returned.
  """
  # On the host: slicing device arrays would compile once per chunk.
  levels = np.asarray(log_snrs)
  steps = len(levels) - 1
  size = chunk_size(steps, chunk)
  for first in range(0, steps, size):
    part = levels[first : first + size + 1]
    state = chunk_fn(state, part, np.int32(first))
    if callback is not None and callback(first + size, state.z):
      break
  return state.z
