"""What a stage of the cascade is told besides the text."""

import functools

import jax
import jax.numpy as jnp

from lumiere_jax.diffusion.noise import INITIAL, Keys, frame_noise
from lumiere_jax.diffusion.schedule import Schedule
from lumiere_jax.pipelines.conditioning import (
  given_frames,
  low_resolution_frames,
)
from lumiere_jax.pipelines.stage import StageConfig
from lumiere_jax.pipelines.told import Given
from lumiere_jax.typing import Cond, PerSample, Video


def add_low_resolution(
  config: StageConfig, cond: Cond, low: Video, keys: Keys, noise_level: float
) -> Cond:
  """Tells super-resolution the video of the stage before it, noised."""
  video = config.video
  level = jnp.full(low.shape[:1], noise_level)
  frames = _noised_low_resolution(
    jnp.clip(low, -1.0, 1.0),
    level,
    jax.vmap(jax.random.fold_in, (0, None))(keys, INITIAL),
    video.resolution,
    config.model.low_resolution,
    config.embedding_schedule,
  )
  return cond.replace(frames=frames, noise_level=level)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _noised_low_resolution(
  low: Video,
  level: PerSample,
  keys: Keys,
  size: tuple[int, int],
  alignment: str,
  schedule: Schedule,
) -> Video:
  noise = frame_noise(keys, INITIAL, low.shape[1], (*size, 3))
  return low_resolution_frames(low, size, alignment, schedule, level, noise)


def add_given(
  config: StageConfig, cond: Cond, frames: int, given: Given | None
) -> Cond:
  """Tells a conditional model which pixels are given; None: text to video."""
  size = (len(cond.text), frames, *config.video.resolution)
  if given is None:
    video, mask = jnp.zeros((*size, 3)), jnp.zeros((*size, 1))
  else:
    parts = given.at(config.video.resolution)
    video, mask = (
      jnp.broadcast_to(part, (len(cond.text), *part.shape)) for part in parts
    )
  said = given_frames(video, mask)
  told = [said] if cond.frames is None else [cond.frames, said]
  return cond.replace(frames=jnp.concatenate(told, axis=-1))
