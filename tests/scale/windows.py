"""A video in windows on several meshes and on one device: python -m ... OUT."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.diffusion.rules import make_sampler
from lumiere_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from lumiere_jax.pipelines.canvas import Windows
from lumiere_jax.pipelines.sampling import Knobs, sample_stage
from lumiere_jax.pipelines.stage import lay_out
from lumiere_jax.typing import Cond
from tests.conftest import random_leaves
from tests.scale.experiments import SSR

FRAMES = 22
MESHES = ((8, 1, 1), (3, 1, 2), (2, 2, 2), (1, 2, 4))
"""Windows of 8 are 4: fewer than devices, uneven over 3, and 2 on each; with
and without rows of a window on several devices."""
SAMPLER, STEPS = "ddpm", 3


def sample(mesh: jax.sharding.Mesh | None) -> np.ndarray:
  """A video of random weights, with noise at every step."""
  config = SSR.sampling
  size = (1, FRAMES, *config.video.resolution)
  key, weights = jax.random.key(7), random_leaves(config.model)
  text = Cond(
    text=jax.random.normal(key, (1, 5, config.model.text_dim)),
    text_mask=jnp.ones((1, 5), bool),
  )
  cond = text.replace(
    frames=jax.random.normal(key, (*size, 3)), noise_level=jnp.full(1, 0.1)
  )
  return np.asarray(
    sample_stage(
      config,
      weights if mesh is None else lay_out(config.model, weights, mesh),
      cond,
      text.replace(text=jnp.zeros_like(text.text)),
      sample_keys([3]),
      FRAMES,
      rule=make_sampler(SAMPLER),
      steps=STEPS,
      knobs=Knobs(guidance_scale=3.0),
      windows=Windows(size=8),
      mesh=mesh,
    )
  )


def main(out: str) -> None:
  """Saves the video of each mesh."""
  videos = {"alone": sample(None)}
  for shape in MESHES:
    config = MeshConfig(**dict(zip(AXES, shape, strict=True)))
    mesh = make_mesh(config, jax.devices()[: np.prod(shape)])
    videos["x".join(map(str, shape))] = sample(mesh)
  np.savez(out, **videos)


if __name__ == "__main__":
  main(sys.argv[1])
