"""Optimizers and learning rates."""

import re
from typing import Any, TypeVar

from flax import struct
import jax
import jax.numpy as jnp
import optax
from optax.contrib import (
  MuonDimensionNumbers,
  ScheduleFreeState,
  muon,
  schedule_free,
  schedule_free_eval_params,
)

from lumiere_jax.models.params import is_spatial
from lumiere_jax.training.config import SCHEDULE_FREE, TrainConfig
from lumiere_jax.typing import FlatParams

T = TypeVar("T")


@struct.dataclass
class SeparateCount:
  """Optimizer state with a separate update count for the added leaves.

  Added leaves are those of inflation: temporal layers and `cond_in`.

  Attributes:
    state: of the optimizer; its counts are those of the other leaves.
    count: updates of the added leaves.
    weight_sum: None, or that of the schedule-free average of the added leaves.
  """

  state: optax.OptState
  count: jax.Array
  weight_sum: jax.Array | None = None


def make_optimizer(
  config: TrainConfig, *, joint: bool = False
) -> optax.GradientTransformation:
  """Gradient clipping, the optimizer, weight decay and the learning rate.

  In `joint` training, steps on images leave the added leaves unchanged (see
  `state.restore_added`). These then have an update count of their own, for
  Adam's bias correction and Adafactor's decay. The learning rate is the same
  for all leaves and follows the steps that were not skipped.
  """
  kinds = {
    "adam": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
    # Imagen's optimizer for its base model (App. F.1): no first moment, a
    # factored second one. As with Adam, only the rate scales the updates.
    "adafactor": lambda: optax.chain(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    # Jordan 2024: the momentum of a matrix is orthogonalised; other leaves use
    # Adam, with Nesterov momentum as in Muon. The learning rate below flips
    # the sign of the -1 here.
    "muon": lambda: muon(
      -1.0,
      eps=config.eps,
      adam_b1=config.b1,
      adam_b2=config.b2,
      muon_weight_dimension_numbers=_hidden_matrices,
      consistent_rms=config.muon_rms,
    ),
    "sgd": optax.identity,
    # Defazio et al. 2024: Adam without its first moment; interpolation with an
    # average of the weights (below) takes the place of momentum.
    SCHEDULE_FREE: lambda: optax.scale_by_rms(
      config.b2, config.eps, eps_in_sqrt=False, bias_correction=True
    ),
  }
  clip = optax.clip_by_global_norm(config.clip_norm)
  parts = [kinds[config.optimizer]()]
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, _matrices))
  rate = learning_rate(config)
  parts.append(optax.scale_by_learning_rate(rate))
  if config.optimizer == SCHEDULE_FREE:
    # Its count starts at 1; the weight of a step is that of its own rate.
    weight_of = lambda count: rate(count - 1)
    parts = [schedule_free(optax.chain(*parts), weight_of, config.b1)]
  optimizer = optax.chain(clip, *parts)
  return _with_separate_count(optimizer) if joint else optimizer


def next_rate(config: TrainConfig, state: optax.OptState) -> jax.Array:
  """The learning rate of the next update."""
  chain = state.state if isinstance(state, SeparateCount) else state
  return jnp.asarray(learning_rate(config)(_updates(chain)))


def averaged_weights(state: optax.OptState, params: FlatParams) -> FlatParams:
  """The weights to evaluate of the schedule-free optimizer."""
  chain = state.state if isinstance(state, SeparateCount) else state
  return schedule_free_eval_params(chain[-1], params)


def _updates(chain: tuple) -> jax.Array:
  """The count of updates in the state of a chain."""
  last = chain[-1]
  if isinstance(last, ScheduleFreeState):
    last = last.base_optimizer_state[-1]
  return last.count


def match_counts(state: optax.OptState, like: optax.OptState) -> optax.OptState:
  """Adds or drops the separate count, so that the state is structured alike.

  For a run that starts or stops joint training, or that began before added
  leaves had a count: theirs then starts at the count of all updates.
  """
  separate = isinstance(state, SeparateCount)
  if isinstance(like, SeparateCount) == separate:
    return state
  return state.state if separate else _separate_counts(state)


def _separate_counts(state: tuple) -> SeparateCount:
  """The state of a chain with counts of the added leaves, so far the same."""
  sums = getattr(state[-1], "weight_sum", None)
  sums = None if sums is None else sums + 0
  return SeparateCount(state, _updates(state) + 0, sums)


def select_added(added: T, other: T) -> T:
  """Merges two trees: added leaves of the first, all others of the second."""

  def select(path: tuple, one: Any, two: Any) -> Any:
    names = [str(getattr(key, "key", "")) for key in path]
    return two if all(map(is_spatial, names)) else one

  return jax.tree_util.tree_map_with_path(select, added, other)


def _with_separate_count(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The optimizer with a separate update count for the added leaves."""

  def init(params: FlatParams) -> SeparateCount:
    return _separate_counts(optimizer.init(params))

  def update(
    grads: FlatParams, state: SeparateCount, params: FlatParams | None = None
  ) -> tuple[FlatParams, SeparateCount]:
    # One of the two is used for each leaf; XLA removes the other.
    added = optimizer.update(grads, _with_counts(state), params)
    other = optimizer.update(grads, state.state, params)
    updates, inner = select_added(added, other)
    return updates, SeparateCount(
      inner,
      optax.safe_increment(state.count),
      getattr(added[1][-1], "weight_sum", None),
    )

  return optax.GradientTransformation(init, update)


def _with_counts(own: SeparateCount) -> optax.OptState:
  """The state with the update counts of the added leaves.

  The count that the learning rate follows is that of all leaves.
  """

  def counts(part: Any) -> bool:
    is_rate = isinstance(part, optax.ScaleByScheduleState)
    return "count" in getattr(part, "_fields", ()) and not is_rate

  *parts, last = jax.tree.map(
    lambda part: part._replace(count=own.count) if counts(part) else part,
    own.state,
    is_leaf=counts,
  )
  if own.weight_sum is not None:
    last = last._replace(weight_sum=own.weight_sum)
  return (*parts, last)


_HIDDEN = re.compile(r"^(?!(.*/)?(stem|head|cond_in)/).*kernel$")
"""Kernels of hidden layers: not those of the input and output layers."""

_FUSED = re.compile(r"(qkv|text_kv)/kernel$")
"""Kernels (in, projections, heads, head_dim) of fused projections."""


def _hidden_matrices(
  params: FlatParams,
) -> dict[str, MuonDimensionNumbers | None]:
  """How Muon reads each leaf as a matrix; None for leaves left to Adam.

  Queries, keys and values are separate matrices.
  """

  def axes(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    # Leaves of the Adam part are masked here and have no `ndim`.
    if getattr(leaf, "ndim", 0) < 2 or not _HIDDEN.search(path):
      return None
    if _FUSED.search(path):
      return MuonDimensionNumbers((0,), tuple(range(2, leaf.ndim)))
    return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

  return {path: axes(path, leaf) for path, leaf in params.items()}


def _matrices(params: FlatParams) -> FlatParams:
  """Which leaves have weight decay: not biases and norm scales."""
  return {path: leaf.ndim > 1 for path, leaf in params.items()}


def learning_rate(config: TrainConfig) -> optax.Schedule:
  """Linear warm-up from 0, decay, linear cool-down to 0."""
  up, down = max(config.warmup_steps, 1), config.cooldown_steps
  top, end = config.learning_rate, config.final_learning_rate

  def decayed(step: jax.Array) -> jax.Array | float:
    if config.decay == "cosine":
      done = jnp.clip((step - up) / max(config.steps - up, 1), 0.0, 1.0)
      return end + (top - end) * (1 + jnp.cos(jnp.pi * done)) / 2
    if config.decay == "rsqrt":
      return top * jnp.sqrt(up / jnp.maximum(step, up))
    return top

  def rate(step: jax.Array) -> jax.Array:
    warmup = (step + 1) / up
    cooldown = (config.steps - step) / down if down else 1.0
    return decayed(step) * jnp.clip(jnp.minimum(warmup, cooldown), 0.0, 1.0)

  return rate
