"""Optimizers and learning rates."""

import re
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, MuonState, muon

from lumiere_jax.models.params import is_spatial
from lumiere_jax.training.config import TrainConfig
from lumiere_jax.typing import FlatParams

T = TypeVar("T")


class CountedApart(NamedTuple):
  """State of an optimizer that counts the updates of added leaves apart.

  Attributes:
    state: of the optimizer; its counts are of the other leaves.
    count: updates of the leaves that inflation adds.
  """

  state: optax.OptState
  count: jax.Array


def make_optimizer(
  config: TrainConfig, *, joint: bool = False
) -> optax.GradientTransformation:
  """Clipping by global norm, the optimizer, decay of kernels, the rate.

  Args:
    config: of the training.
    joint: whether some steps leave the leaves alone that inflation adds (see
      `state.keep_added`): these then have a count of updates of their own, for
      Adam's bias correction and Adafactor's decay. The learning rate is one
      for all leaves, by the steps that changed anything.
  """
  kinds = {
    "adam": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
    # Imagen (App. F.1) trains its base model with it: no first moment, the
    # second one factored. Steps are scaled by the rate alone, as Adam's are.
    "adafactor": lambda: optax.chain(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    # Jordan 2024: the momentum of a matrix made orthogonal; Adam, by Nesterov
    # as Muon is, for what is none. The rate below takes back that of -1.
    "muon": lambda: muon(
      -1.0,
      eps=config.eps,
      adam_b1=config.b1,
      adam_b2=config.b2,
      muon_weight_dimension_numbers=_hidden_matrices,
      consistent_rms=config.muon_rms,
    ),
    "sgd": optax.identity,
  }
  parts = [optax.clip_by_global_norm(config.clip_norm)]
  parts.append(kinds[config.optimizer]())
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, _matrices))
  rate = optax.scale_by_learning_rate(learning_rate(config))
  optimizer = optax.chain(*parts, rate)
  return _counted_apart(optimizer) if joint else optimizer


def next_rate(config: TrainConfig, state: optax.OptState) -> jax.Array:
  """The learning rate of the next update, of a state of `make_optimizer`'s."""
  chain = state.state if isinstance(state, CountedApart) else state
  return jnp.asarray(learning_rate(config)(chain[-1].count))


def counted_as(state: optax.OptState, like: optax.OptState) -> optax.OptState:
  """A state with counts for all leaves, or apart, as another one has them.

  For a run that begins or ceases to mix in pictures, or was begun before added
  leaves had a count: theirs is then that of all updates.
  """
  apart = isinstance(state, CountedApart)
  if isinstance(like, CountedApart) == apart:
    return state
  return state.state if apart else CountedApart(state, state[-1].count + 0)


def choose_added(added: T, other: T) -> T:
  """Leaves that inflation adds, of whatever tree, from the first of two."""

  def choose(path: tuple, one: Any, two: Any) -> Any:
    names = [str(getattr(key, "key", "")) for key in path]
    return two if all(map(is_spatial, names)) else one

  return jax.tree_util.tree_map_with_path(choose, added, other)


def _counted_apart(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The optimizer, with a count of its own for leaves that inflation adds."""

  def init(params: FlatParams) -> CountedApart:
    return CountedApart(optimizer.init(params), jnp.zeros((), jnp.int32))

  def update(
    grads: FlatParams, state: CountedApart, params: FlatParams | None = None
  ) -> tuple[FlatParams, CountedApart]:
    # Of each leaf one of the two is used, and compiled.
    own = optimizer.update(grads, _at(state.count, state.state), params)
    shared = optimizer.update(grads, state.state, params)
    updates, inner = choose_added(own, shared)
    return updates, CountedApart(inner, optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def _at(count: jax.Array, state: optax.OptState) -> optax.OptState:
  """The state of an optimizer as if it had made so many updates."""
  counting = (optax.ScaleByAdamState, optax.FactoredState, MuonState)
  counts = lambda part: isinstance(part, counting)
  return jax.tree.map(
    lambda part: part._replace(count=count) if counts(part) else part,
    state,
    is_leaf=counts,
  )


_HIDDEN = re.compile(r"^(?!(.*/)?(stem|head|cond_in)/).*kernel$")
"""Kernels of layers between others: not what reads or makes pixels."""


_SEVERAL = re.compile(r"(qkv|text_kv)/kernel$")
"""Kernels (in, several, heads, head_dim) of several projections beside."""


def _hidden_matrices(
  params: FlatParams,
) -> dict[str, MuonDimensionNumbers | None]:
  """How each leaf that Muon steps is read as a matrix; None: Adam does.

  Queries, keys and values are matrices of their own.
  """

  def axes(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    # What Adam steps is masked where Muon asks.
    if getattr(leaf, "ndim", 0) < 2 or not _HIDDEN.search(path):
      return None
    if _SEVERAL.search(path):
      return MuonDimensionNumbers((0,), tuple(range(2, leaf.ndim)))
    return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

  return {path: axes(path, leaf) for path, leaf in params.items()}


def _matrices(params: FlatParams) -> FlatParams:
  """Which leaves decay: neither biases nor scales of norms."""
  return {path: leaf.ndim > 1 for path, leaf in params.items()}


def learning_rate(config: TrainConfig) -> optax.Schedule:
  """Linear warm-up from 0, the decay, linear cool-down to 0 at the end."""
  up, down = max(config.warmup_steps, 1), config.cooldown_steps
  top, end = config.learning_rate, config.final_learning_rate

  def decayed(step: jax.Array) -> jax.Array:
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
