"""Optimizers and learning rates."""

import jax
import jax.numpy as jnp
import optax

from lumiere_jax.training.config import TrainConfig
from lumiere_jax.typing import FlatParams


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
  """Clipping by global norm, the optimizer, decay of kernels, the rate."""
  kinds = {
    "adam": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
    # Imagen (App. F.1) trains its base model with it: no first moment, the
    # second one factored. Steps are scaled by the rate alone, as Adam's are.
    "adafactor": lambda: optax.chain(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    "sgd": optax.identity,
  }
  parts = [optax.clip_by_global_norm(config.clip_norm)]
  parts.append(kinds[config.optimizer]())
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, _matrices))
  return optax.chain(
    *parts, optax.scale_by_learning_rate(learning_rate(config))
  )


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
