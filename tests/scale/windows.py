"""Samples a video in windows on several meshes: python -m ... OUT."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from lumiere_jax.diffusion.guidance import Part, threshold
from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.inference.stage_sampler import Program, sample_stage, traced
from lumiere_jax.inference.windowing import Windows
from lumiere_jax.stages.config import SamplingConfig
from lumiere_jax.stages.denoiser import lay_out_weights
from lumiere_jax.typing import Cond
from tests.conftest import random_leaves
from tests.scale.experiments import SSR, mesh_of

FRAMES = 22

MESHES = ((8, 1, 1), (3, 1, 2), (2, 2, 2), (1, 2, 4))
"""Four windows of 8: fewer than devices, uneven over 3, and 2 on each; with and
without sharded rows."""

SAMPLER, STEPS = "ddpm", 3


def sample(mesh: jax.sharding.Mesh | None) -> np.ndarray:
  """A video of a random network with a stochastic sampler."""
  config = SSR.sampling
  size = (1, FRAMES, *config.video.resolution)
  key, weights = jax.random.key(7), random_leaves(config.model)
  text = Cond(
    text=jax.random.normal(key, (1, 5, config.model.text_dim)),
    text_mask=jnp.ones((1, 5), bool),
  )
  cond = dataclasses.replace(
    text,
    frames=jax.random.normal(key, (*size, 3)),
    noise_level=jnp.full(1, 0.1),
  )
  sampling = SamplingConfig(steps=STEPS, guidance_scale=3.0)
  video = sample_stage(
    _program(mesh),
    weights
    if mesh is None
    else lay_out_weights(config.execution.dtype, weights, mesh),
    cond,
    dataclasses.replace(text, text=jnp.zeros_like(text.text)),
    sample_keys([3]),
    log_snrs=config.levels(sampling),
    guidance=traced(sampling),
    mesh=mesh,
  )
  return np.asarray(video)


def _program(mesh: jax.sharding.Mesh | None) -> Program:
  return Program(
    config=SSR.sampling,
    rule=make_sampler(SAMPLER),
    windows=Windows(size=8),
    num_frames=FRAMES,
    devices=mesh.shape["data"] if mesh else 1,
  )


def thresholded(mesh: jax.sharding.Mesh | None) -> np.ndarray:
  """A thresholded clip of noise; on a mesh, sharded as for windows."""
  z = 3 * jax.random.normal(jax.random.key(0), (2, FRAMES, 8, 8, 3))
  division = _program(mesh).division

  def apply(z, owned=None):
    part = None
    if division:
      part = Part(axis="data", owned=owned[0], num_frames=FRAMES)
    denoiser = lambda z, log_snr, cond: predict("x0", z, z, log_snr)
    cond = Cond(text=jnp.zeros((2, 1, 1)))
    return threshold(denoiser, 0.95, 100.0, part)(z, jnp.zeros(2), cond).x0

  if mesh is None:
    return np.asarray(jax.jit(apply)(z))
  if division is None:
    with jax.set_mesh(mesh):
      rows = jax.device_put(z, P(None, None, "space"))
      return np.asarray(jax.jit(apply)(rows))
  held = z[:, division.frames]
  for k, count in enumerate(division.counts):  # leftovers of windows
    rest = slice(k * division.size + count, (k + 1) * division.size)
    held = held.at[:, rest].set(1e9)
  cut = P(None, "data")
  divided = jax.shard_map(
    apply,
    in_specs=(cut, P("data")),
    out_specs=cut,
    axis_names={"data"},
    check_vma=False,
  )
  with jax.set_mesh(mesh):
    held = jax.device_put(held, P(None, "data", "space"))
    out = jax.jit(divided)(held, division.tables["counts"])
  return np.asarray(out)[:, division.places]


def main(out: str) -> None:
  """Saves the video and the thresholded clip of each mesh."""
  videos = {"alone": sample(None), "thresholded alone": thresholded(None)}
  for shape in MESHES:
    mesh = mesh_of(*shape)
    name = "x".join(map(str, shape))
    videos[name] = sample(mesh)
    videos[f"thresholded {name}"] = thresholded(mesh)
  np.savez(out, **videos)


if __name__ == "__main__":
  main(sys.argv[1])
