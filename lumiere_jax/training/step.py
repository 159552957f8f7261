"""One training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lumiere_jax.diffusion.loss import Draws
from lumiere_jax.parallel.arrays import replicated
from lumiere_jax.parallel.backend import compiler_options, platform_of
from lumiere_jax.parallel.sharding import constrain_leaves
from lumiere_jax.training.blocks import by_block
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.optimizer import make_optimizer, next_rate
from lumiere_jax.training.state import (
  TrainState,
  apply_gradients,
  keep_added,
)
from lumiere_jax.training.tasks import Batch, Task
from lumiere_jax.typing import FlatParams

Metrics = dict[str, Any]


def loss_and_gradients(
  experiment: Experiment, task: Task
) -> Callable[..., tuple[jax.Array, FlatParams]]:
  """(trainable, frozen, batch, draws) -> mean loss and its gradients.

  Gradients are taken with respect to the trainable leaves alone. A batch is
  worked through in `accumulate` micro-batches, one after the other, whose
  random draws are those of its clips in the whole batch.
  """

  def loss_of(
    trainable: FlatParams, frozen: FlatParams, batch: Batch, draws: Draws
  ) -> jax.Array:
    return task.loss({**trainable, **frozen}, batch, draws)[0]

  def whole(*args: Any) -> tuple[jax.Array, FlatParams]:
    loss, grads = jax.value_and_grad(loss_of)(*args)
    return loss, constrain_leaves(grads)

  parts = experiment.train.accumulate

  def micro(x: jax.Array) -> jax.Array:
    # Every parts-th clip: a device's own clips stay on it.
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  def accumulated(
    trainable: FlatParams, frozen: FlatParams, batch: Batch, draws: Draws
  ) -> tuple[jax.Array, FlatParams]:
    def add(total: Any, part: tuple[Batch, Draws]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, whole(trainable, frozen, *part)), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), trainable))
    slices = jax.tree.map(micro, (dict(batch), draws))
    total, _ = jax.lax.scan(add, zero, slices)
    return jax.tree.map(lambda x: x / parts, total)

  return whole if parts == 1 else accumulated


def make_train_step(
  experiment: Experiment, task: Task
) -> Callable[..., tuple[TrainState, Metrics]]:
  """(state, frozen, batch, key) -> (state, metrics), to be compiled.

  Random keys are folded from the step, so a resumed run repeats itself bit
  for bit. `learning_rate` of the metrics is what the step was taken with.
  """
  optimizer = make_optimizer(experiment.train, joint=experiment.joint)
  gradients = loss_and_gradients(experiment, task)

  def train_step(
    state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    step_key = jax.random.fold_in(key, state.step)
    draws = task.draw(batch, step_key)
    loss, grads = gradients(state.trainable, frozen, batch, draws)
    new = apply_gradients(state, grads, optimizer, experiment.train)
    if task.is_picture(batch):
      if not experiment.joint:
        raise ValueError("a batch of pictures, of which the data says nothing")
      new = keep_added(state, new)
    norms = {k: optax.tree.norm(v) for k, v in by_block(grads).items()}
    return new, {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "grad_norms": norms,
      "learning_rate": next_rate(experiment.train, state.opt_state),
      "skipped": new.skipped,
      "skipped_in_a_row": new.skipped_in_a_row,
    }

  return train_step


def jit_train_step(
  experiment: Experiment, task: Task, state: TrainState
) -> Callable[..., tuple[TrainState, Metrics]]:
  """`make_train_step` jitted: the new state lies where the old one did.

  Args:
    experiment: the stage.
    task: of the stage.
    state: with its shardings; may be abstract.
  """
  where = jax.tree.map(lambda leaf: leaf.sharding, state)
  mesh = state.step.sharding.mesh
  return jax.jit(
    make_train_step(experiment, task),
    donate_argnums=0,
    out_shardings=(where, replicated(mesh)),
    compiler_options=compiler_options(platform_of(mesh)),
  )
