"""Training state: what one step turns into the next."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import optax

from lumiere_jax.training.config import TrainConfig
from lumiere_jax.training.optimizer import choose_added
from lumiere_jax.typing import FlatParams


@struct.dataclass
class TrainState:
  """Step, weights that train, their average, and the optimizer's moments.

  Frozen weights are not in it: they have no gradient, moment or average, are
  handed to the step beside it, and are saved once a run.

  Attributes:
    step: steps taken.
    skipped: steps of these whose gradients were not finite: nothing changed.
    skipped_in_a_row: the last ones of them, up to now.
    trainable: weights that train.
    ema: their average.
    opt_state: of the optimizer.
  """

  step: jax.Array
  skipped: jax.Array
  skipped_in_a_row: jax.Array
  trainable: FlatParams
  ema: FlatParams
  opt_state: optax.OptState


def init_state(
  trainable: FlatParams, optimizer: optax.GradientTransformation
) -> TrainState:
  """State at step 0; the average starts as a copy of the weights."""
  zero = lambda: jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero(),
    skipped=zero(),
    skipped_in_a_row=zero(),
    trainable=trainable,
    ema=jax.tree.map(jnp.copy, trainable),
    opt_state=optimizer.init(trainable),
  )


def ema_decay(step: jax.Array, decay: float, warmup: float = 10.0) -> jax.Array:
  """min(decay, (1 + step) / (warmup + step)): early steps are forgotten."""
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + step) / (warmup + step))


def apply_gradients(
  state: TrainState,
  grads: FlatParams,
  optimizer: optax.GradientTransformation,
  config: TrainConfig,
) -> TrainState:
  """One optimizer step and one step of the average.

  A step whose gradients are not all finite changes nothing but the counts.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
  trainable = optax.apply_updates(state.trainable, updates)
  decay = ema_decay(state.step, config.ema_decay, config.ema_warmup)
  average = functools.partial(optax.incremental_update, step_size=1.0 - decay)
  moved = state.replace(
    trainable=trainable,
    ema=average(trainable, state.ema),
    opt_state=opt_state,
  )
  finite = jnp.isfinite(optax.tree.norm(grads))
  skip = 1 - finite.astype(jnp.int32)
  chosen = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), moved, state
  )
  return chosen.replace(
    step=state.step + 1,
    skipped=state.skipped + skip,
    skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
  )


def keep_added(old: TrainState, new: TrainState) -> TrainState:
  """`new`, with the leaves that an image model does not have as in `old`.

  Their weights, moments, averages and count of updates alike: a step on
  pictures, which go past the temporal layers, must not let these drift on old
  momentum.

  Args:
    old: before the step.
    new: after it; its optimizer is one of `make_optimizer(joint=True)`.
  """
  kept = choose_added(old, new)
  opt_state = kept.opt_state._replace(count=old.opt_state.count)
  return kept.replace(opt_state=opt_state)
