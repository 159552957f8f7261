"""From noise to video: one scan over steps, and the host's loop around it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from lumiere_jax.diffusion.noise import Keys, frame_noise
from lumiere_jax.diffusion.prediction import Denoiser, Prediction
from lumiere_jax.diffusion.samplers import LogSNR, State
from lumiere_jax.diffusion.schedules import Schedule
from lumiere_jax.errors import UserError, option
from lumiere_jax.typing import Cond, Video, typechecked


@typechecked
def time_grid(schedule: Schedule, steps: int) -> Float[Array, "n"]:
  """The noise levels of `steps` sampling steps, spaced as the schedule does.

  Returns:
    (steps + 1,) log-SNR, rising. The last one is +inf whatever the schedule's
    clip: a last step to there returns the predicted x0, without noise.

  Raises:
    UserError: fewer than one step, or more than a discrete schedule has.
  """
  if steps < 1:
    raise UserError(f"steps={steps}", "is too few", "use at least 1")
  return jnp.append(schedule.grid(steps), jnp.inf)


def part_way(
  log_snrs: Float[Array | np.ndarray, "n"],
  strength: float,
  schedule: Schedule,
  *,
  rounded: bool,
) -> Float[np.ndarray, "m"]:
  """The levels to sample a given video through: SDEdit (Meng et al. 2021).

  Args:
    log_snrs: (steps + 1,) rising; the last one is infinite.
    strength: in (0, 1], the schedule time of the noise to begin with: the same
      on every grid. 1 takes all levels.
    schedule: gives the time its log-SNR.
    rounded: begins at the nearest level of the grid instead, as ours did at
      first.

  Returns:
    The first level, and those of `log_snrs` that are cleaner.

  Raises:
    UserError: the strength is outside.
  """
  if not 0 < strength <= 1:
    raise UserError(
      f"{option('strength')}={strength:g}",
      "is not in (0, 1]",
      "1 keeps nothing of the video, a small one nearly all",
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
  rule: Any,
  state: State,
  log_snrs: Float[Array, "n"],
  first_step: int | Int[Array, ""],
  keys: Keys,
  cond: Cond,
  first_frame: int | Int[Array, ""] = 0,
) -> State:
  """Runs consecutive sampling steps as one scan; to be jitted by the caller.

  Args:
    denoiser: network with guidance, windows, thresholds around it.
    rule: a `rules.Rule`; static.
    state: `rule.init(z)`, or what the chunk before returned.
    log_snrs: (steps of this chunk + 1,) noise levels, a stretch of
      `time_grid`.
    first_step: the number of the chunk's first step in the whole; noise is
      keyed by it, so that chunks of any size draw the same.
    keys: (b,) keys of the samples.
    cond: conditioning.
    first_frame: number of the canvas's first frame in the video, where it is
      but a part of it: each frame has noise of its own.
  """
  num_frames, *shape = state.z.shape[1:]

  def denoise(z: Video, log_snr: LogSNR) -> Prediction:
    return denoiser(z, jnp.full(z.shape[:1], log_snr), cond)

  def body(state: State, step: tuple) -> tuple[State, None]:
    number, log_snr_t, log_snr_s = step
    noise = frame_noise(keys, number, num_frames, tuple(shape), first_frame)
    return rule.advance(denoise, state, log_snr_t, log_snr_s, noise), None

  numbers = first_step + jnp.arange(log_snrs.shape[0] - 1)
  steps = (numbers, log_snrs[:-1], log_snrs[1:])
  return jax.lax.scan(body, state, steps)[0]


def chunk_size(steps: int, most: int) -> int:
  """The largest divisor of `steps` up to `most`: one compilation serves all.

  Raises:
    UserError: `most` is below 1.
  """
  if most < 1:
    raise UserError(f"chunk={most}", "is too small", "use at least 1 step")
  return max(d for d in range(1, min(most, steps) + 1) if steps % d == 0)


def sample(
  chunk_fn: Callable[[State, np.ndarray, np.int32], State],
  state: State,
  log_snrs: Float[Array, "n"],
  chunk: int,
  callback: Callable[[int, Video], bool | None] | None = None,
) -> Video:
  """Runs all steps in equal chunks, with the host in between.

  Args:
    chunk_fn: `chunk_fn(state, log_snrs, first_step)`: a jitted `sample_chunk`
      with the rest bound.
    state: `rule.init(z)`.
    log_snrs: (steps + 1,) all noise levels, see `time_grid`.
    chunk: most steps per chunk; see `chunk_size`.
    callback: called as `callback(steps done, z)` after every chunk, for
      progress and previews. Returning True stops; so does raising.

  Returns:
    The video; the canvas as it stands if the callback stopped early.

  Raises:
    UserError: a chunk below 1.
  """
  # On the host: slicing device arrays would compile once per chunk.
  log_snrs = np.asarray(log_snrs)
  steps = len(log_snrs) - 1
  size = chunk_size(steps, chunk)
  for first in range(0, steps, size):
    levels = log_snrs[first : first + size + 1]
    state = chunk_fn(state, levels, np.int32(first))
    if callback is not None and callback(first + size, state.z):
      break
  return state.z
