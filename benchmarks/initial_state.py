"""The initial state of a run, without data or pretrained weights."""

import jax.numpy as jnp

from lumiere_jax.models.params import split
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import (
  cast_frozen,
  fresh_params,
  trainable_pattern,
)
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import TrainState, init_state
from lumiere_jax.training.task import Task
from lumiere_jax.typing import FlatParams


def make_task(experiment: Experiment) -> Task:
  """A task whose null text is zeros."""
  return Task(
    experiment=experiment,
    null_text=jnp.zeros((1, experiment.model.text_dim)),
    null_mask=jnp.ones(1, bool),
  )


def initial_state(experiment: Experiment) -> tuple[TrainState, FlatParams]:
  """Random training state and frozen weights; to be jitted or traced."""
  params = fresh_params(experiment, make_task(experiment))
  trainable, frozen = split(params, trainable_pattern(experiment))
  optimizer = make_optimizer(experiment.train, joint=experiment.joint)
  return init_state(trainable, optimizer), cast_frozen(frozen, experiment)
