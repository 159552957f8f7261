"""Trains on every mesh of eight devices and on one: python -m ... OUT.npz."""

import functools
import itertools
import sys

import jax
import numpy as np

from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import fresh_params
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import apply_gradients, init_state
from lumiere_jax.training.train_step import loss_and_gradients
from tests.scale.experiments import BASE, MICRO, mesh_of, with_optimizer
from tests.training.conftest import make_batch, make_task

SHAPES = [
  shape
  for shape in itertools.product((1, 2, 4, 8), repeat=3)
  if np.prod(shape) == 8
]

RUNS = {
  "micro": (MICRO, SHAPES),
  # All kinds of layers; compiles ten times slower.
  "base": (BASE, [(2, 2, 2), (1, 2, 4)]),
}

OPTIMIZERS = ("sgd", "adam", "muon", "schedule_free")
STEPS = 10


def run(
  experiment: Experiment, mesh: jax.sharding.Mesh
) -> dict[str, np.ndarray]:
  """Losses of ten steps with each optimizer, and the final weights.

  Gradients and update are jitted separately: gradients, which take longest to
  compile, are the same for all optimizers.
  """
  task = make_task(experiment)
  gradients = jax.jit(loss_and_gradients(experiment, task))
  weights = fresh_params(experiment, task)
  results = {}
  for name in OPTIMIZERS:
    config = with_optimizer(experiment, name).train
    optimizer = make_optimizer(config)
    state = init_state(weights, optimizer)
    where = shardings(state, mesh)
    state = multihost.lay_out(state, where)
    update = jax.jit(
      functools.partial(apply_gradients, optimizer=optimizer, config=config),
      out_shardings=where,
    )
    losses = []
    with jax.set_mesh(mesh):
      for step in range(STEPS):
        batch = jax.device_get(make_batch(experiment, 8, seed=step))
        batch = multihost.to_devices(mesh, batch, 8)
        draws = task.draw(batch, jax.random.key(step))
        loss, grads = gradients(state.trainable, {}, batch, draws)
        state = update(state, grads)
        losses.append(float(loss))
    results[f"{name}/losses"] = np.asarray(losses)
    for path, leaf in multihost.to_host(state.trainable).items():
      results[f"{name}/weights/{path}"] = leaf
  return results


def main(out: str) -> None:
  """Saves the results of each mesh."""
  results = {}
  for model, (experiment, shapes) in RUNS.items():
    for shape in [(1, 1, 1), *shapes]:
      for name, value in run(experiment, mesh_of(*shape)).items():
        results[f"{model}/{'x'.join(map(str, shape))}/{name}"] = value
  np.savez(out, **results)


if __name__ == "__main__":
  main(sys.argv[1])
