"""Training state and its update."""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import optax

from lumiere_jax.training.config import SCHEDULE_FREE, TrainConfig
from lumiere_jax.training.optimizer import averaged_weights, select_added
from lumiere_jax.typing import FlatParams


@struct.dataclass
class TrainState:
  """Step, trainable weights, their average, and the optimizer state.

  Frozen weights are separate: they have no gradient, moment or average, are
  passed to the step beside the state, and are saved once per run.

  Attributes:
    step: steps taken, skipped ones included.
    skipped: steps whose gradients were not finite; they changed nothing.
    skipped_in_a_row: how many of the newest steps were skipped.
    trainable: weights that train.
    ema: their average: exponential and moving, or that of the optimizer.
    opt_state: of the optimizer.
    averages: power-function averages of `averaging`, in the order of
      `TrainConfig.ema_stds`.
  """

  step: jax.Array
  skipped: jax.Array
  skipped_in_a_row: jax.Array
  trainable: FlatParams
  ema: FlatParams
  opt_state: optax.OptState
  averages: tuple[FlatParams, ...] = ()


def init_state(
  trainable: FlatParams,
  optimizer: optax.GradientTransformation,
  num_averages: int = 0,
) -> TrainState:
  """The state at step 0; averages start as copies of the weights."""
  zero = lambda: jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero(),
    skipped=zero(),
    skipped_in_a_row=zero(),
    trainable=trainable,
    ema=jax.tree.map(jnp.copy, trainable),
    opt_state=optimizer.init(trainable),
    averages=tuple(
      jax.tree.map(jnp.copy, trainable) for _ in range(num_averages)
    ),
  )


def ema_decay(step: jax.Array, decay: float, warmup: float = 10.0) -> jax.Array:
  """min(decay, (1 + step) / (warmup + step)): a warm-up of the EMA decay."""
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + step) / (warmup + step))


def apply_gradients(
  state: TrainState,
  grads: FlatParams,
  optimizer: optax.GradientTransformation,
  config: TrainConfig,
) -> TrainState:
  """One optimizer step and one step of the average.

  A step whose gradients are not all finite changes only the counts.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
  trainable = optax.apply_updates(state.trainable, updates)
  if config.optimizer == SCHEDULE_FREE:
    ema = averaged_weights(opt_state, trainable)
  else:
    decay = ema_decay(state.step, config.ema_decay, config.ema_warmup)
    ema = optax.incremental_update(trainable, state.ema, 1.0 - decay)
  updated = dataclasses.replace(
    state, trainable=trainable, ema=ema, opt_state=opt_state
  )
  finite = jnp.isfinite(optax.tree.norm(grads))
  skip = 1 - finite.astype(jnp.int32)
  selected = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, state
  )
  return dataclasses.replace(
    selected,
    step=state.step + 1,
    skipped=state.skipped + skip,
    skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
  )


def restore_added(old: TrainState, new: TrainState) -> TrainState:
  """`new`, with weights, moments, averages and count of added leaves of `old`.

  A step on images bypasses the temporal layers, which must not drift on old
  momentum. The optimizer is one with `joint=True`.
  """
  restored = select_added(old, new)
  opt_state = dataclasses.replace(
    restored.opt_state,
    count=old.opt_state.count,
    weight_sum=old.opt_state.weight_sum,
  )
  return dataclasses.replace(restored, opt_state=opt_state)
