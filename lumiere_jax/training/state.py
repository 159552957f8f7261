"""Training state: what one step turns into the next."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import optax

from lumiere_jax.training.config import TrainConfig
from lumiere_jax.typing import FlatParams


@struct.dataclass
class TrainState:
  """Step, weights that train, their average, and the optimizer's moments.

  Frozen weights are not in it: they have no gradient, moment or average, are
  handed to the step beside it, and are saved once a run.
  """

  step: jax.Array
  trainable: FlatParams
  ema: FlatParams
  opt_state: optax.OptState


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
  """Clipping by global norm, then Adam with linear warm-up."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adam(learning_rate(config), config.b1, config.b2, config.eps),
  )


def learning_rate(config: TrainConfig) -> optax.Schedule:
  """Linear warm-up from 0, then constant, then linear cool-down to 0."""
  top, up, down = (
    config.learning_rate,
    max(config.warmup_steps, 1),
    config.cooldown_steps,
  )

  def rate(step: jax.Array) -> jax.Array:
    warmup = (step + 1) / up
    cooldown = (config.steps - step) / down if down else 1.0
    return top * jnp.clip(jnp.minimum(warmup, cooldown), 0.0, 1.0)

  return rate


def init_state(
  trainable: FlatParams, optimizer: optax.GradientTransformation
) -> TrainState:
  """State at step 0; the average starts as a copy of the weights."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    ema=jax.tree.map(jnp.copy, trainable),
    opt_state=optimizer.init(trainable),
  )


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """min(decay, (1 + step) / (10 + step)): early steps are forgotten sooner."""
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def apply_gradients(
  state: TrainState,
  grads: FlatParams,
  optimizer: optax.GradientTransformation,
  config: TrainConfig,
) -> TrainState:
  """One optimizer step and one step of the average."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
  trainable = optax.apply_updates(state.trainable, updates)
  decay = ema_decay(state.step, config.ema_decay)
  average = functools.partial(optax.incremental_update, step_size=1.0 - decay)
  return TrainState(
    step=state.step + 1,
    trainable=trainable,
    ema=average(trainable, state.ema),
    opt_state=opt_state,
  )
