"""Trains on every mesh of eight devices and on one: python -m ... OUT.npz."""

import itertools
import sys

import jax
import numpy as np

from lumiere_jax.parallel import arrays
from lumiere_jax.parallel.mesh import MeshConfig, make_mesh
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.start import fresh_params
from lumiere_jax.training.state import init_state
from lumiere_jax.training.step import jit_train_step
from tests.scale.experiments import BASE, with_optimizer
from tests.training.conftest import make_batch, make_task

SHAPES = [
  shape
  for shape in itertools.product((1, 2, 4, 8), repeat=3)
  if np.prod(shape) == 8
]
STEPS = 10


def run(experiment: Experiment, mesh: jax.sharding.Mesh):
  """Losses of ten steps, and the weights after them."""
  task = make_task(experiment)
  optimizer = make_optimizer(experiment.train)
  state = init_state(fresh_params(experiment, task), optimizer)
  state = arrays.put(state, shardings(state, mesh))
  step = jit_train_step(experiment, task, state)
  losses = []
  with jax.set_mesh(mesh):
    for k in range(STEPS):
      batch = jax.device_get(make_batch(experiment, 8, seed=k))
      batch = arrays.to_devices(mesh, batch, 8)
      state, metrics = step(state, {}, batch, jax.random.key(0))
      losses.append(metrics["loss"])
  return np.asarray(jax.device_get(losses)), arrays.to_host(state.trainable)


def main(out: str) -> None:
  """Saves losses and weights of each optimizer and mesh."""
  results = {}
  for name in ("sgd", "adam"):
    experiment = with_optimizer(BASE, name)
    for shape in [(1, 1, 1), *SHAPES]:
      config = MeshConfig(**dict(zip(("data", "fsdp", "space"), shape)))
      mesh = make_mesh(config, jax.devices()[: np.prod(shape)])
      losses, weights = run(experiment, mesh)
      key = f"{name}/{'x'.join(map(str, shape))}"
      results[f"{key}/losses"] = losses
      print(key, losses, flush=True)
      for path, leaf in weights.items():
        results[f"{key}/weights/{path}"] = leaf
  np.savez(out, **results)


if __name__ == "__main__":
  main(sys.argv[1])
