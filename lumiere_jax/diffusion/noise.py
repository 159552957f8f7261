"""Reproducible noise.

Keys are folded per sample and per frame, so that the noise of a frame depends
only on seed, step and frame number, not on batch, windows or devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.typing import Video, typechecked

INITIAL = 2**31 - 1
"""The step number of the initial noise."""

Keys = Key[Array, "b"]


@typechecked
def sample_keys(seeds: Sequence[int], stream: int = 0) -> Keys:
  """One random key per sample, from seeds in [0, 2^32).

  Another `stream`, e.g. the number of the stage in a cascade, gives independent
  keys.
  """
  for seed in seeds:
    if not 0 <= seed < 2**32:
      raise UserError(f"seed {seed}", "is not in [0, 2^32)", "choose one there")
  return stream_keys(np.asarray(seeds, np.uint32), stream)


def stream_keys(seeds: UInt32[Array | np.ndarray, "b"], stream: int) -> Keys:
  """`sample_keys` of unchecked seeds, which may be traced."""
  key = lambda seed: jax.random.fold_in(jax.random.key(seed), stream)
  return jax.vmap(key)(seeds)


@typechecked
def frame_noise(
  keys: Keys,
  step: int | Int[Array, ""],
  num_frames: int,
  shape: tuple[int, int, int],
  first_frame: int | Int[Array, ""] = 0,
) -> Video:
  """Standard normal noise of one step (or `INITIAL`), bit-equal in any batch.

  `shape` is (h, w, c); `first_frame` is the number of the first frame in the
  whole video.
  """

  def frame(key: Key[Array, ""], number: Int[Array, ""]) -> Float[Array, "..."]:
    return jax.random.normal(jax.random.fold_in(key, number), shape)

  numbers = first_frame + jnp.arange(num_frames)
  step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
  frames = jax.vmap(frame, (None, 0))
  return jax.vmap(frames, (0, None))(step_keys, numbers)
