"""A toy network and inputs to compare samplers with those of diffusers."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumiere_jax.diffusion.guidance import threshold
from lumiere_jax.diffusion.noise import frame_noise, sample_keys
from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.diffusion.sampling_loop import sample, sample_chunk
from lumiere_jax.diffusion.schedules import Schedule, SquaredCosCapV2
from lumiere_jax.typing import Cond

FOLDER = Path(__file__).parent / "samplers"
NAMES = ("ddpm", "ddim", "dpmpp_2m", "heun")
STEPS = 10
SHAPE = (2, 1, 4, 6, 3)
SEEDS = [0, 1]

THRESHOLD = {"percentile": 0.95, "max_value": 1.5}
"""For DDPM and DDIM; other schedulers do not support it."""


def toy(xp: Any, z: Any) -> tuple[Any, Any]:
  """The network: eps and v of a learned variance."""
  return 0.6 * xp.tanh(z + 0.3) + 0.3 * z, xp.sin(2 * z - 0.1)


def first() -> np.ndarray:
  """The initial z."""
  return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def noise(step: int) -> np.ndarray:
  """The noise of a step."""
  return np.asarray(frame_noise(sample_keys(SEEDS), step, 1, SHAPE[2:]))


def time_grid(schedule: Schedule, steps: int) -> jax.Array:
  """Noise levels on a schedule's own grid, (steps + 1,)."""
  return jnp.append(schedule.grid(steps), jnp.inf)


def walk(name: str) -> np.ndarray:
  """Our z after every step, (steps, *SHAPE)."""

  def network(z, log_snr, cond):
    eps, v = toy(jnp, z)
    log_var = (v + 1) / 2 if name == "ddpm" else None
    return predict("eps", eps, z, log_snr, log_var)

  if name in ("ddpm", "ddim"):
    network = threshold(network, **THRESHOLD)
  sampler = make_sampler(name)
  cond = Cond(text=jnp.zeros((SHAPE[0], 1, 1)))
  chunk = jax.jit(
    lambda *args: sample_chunk(
      network, sampler, *args, sample_keys(SEEDS), cond
    )
  )
  levels = time_grid(SquaredCosCapV2(), STEPS)
  seen = []
  keep = lambda step, z: seen.append(np.asarray(z))
  sample(chunk, sampler.init(jnp.asarray(first())), levels, 1, keep)
  return np.stack(seen)
