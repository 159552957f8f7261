"""One training step, compiled."""

from collections.abc import Callable
import functools

import jax
import optax

from lumiere_jax.training.config import Experiment
from lumiere_jax.training.state import (
  TrainState,
  apply_gradients,
  learning_rate,
  make_optimizer,
)
from lumiere_jax.training.tasks import Batch, Task
from lumiere_jax.typing import FlatParams

Metrics = dict[str, jax.Array]


def make_train_step(
  experiment: Experiment, task: Task
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The jitted step: (state, frozen, batch, key) -> (state, metrics).

  Gradients are taken with respect to the trainable leaves alone; random keys
  are folded from the step, so a resumed run repeats itself bit for bit.
  """
  optimizer = make_optimizer(experiment.train)
  schedule = learning_rate(experiment.train)

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(
    state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    step_key = jax.random.fold_in(key, state.step)

    def loss_of(trainable: FlatParams) -> tuple[jax.Array, Metrics]:
      return task.loss({**trainable, **frozen}, batch, step_key)

    (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(
      state.trainable
    )
    metrics = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "learning_rate": schedule(state.step),
    }
    return apply_gradients(state, grads, optimizer, experiment.train), metrics

  return train_step
