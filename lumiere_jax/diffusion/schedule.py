"""Noise schedules in continuous time, as log signal-to-noise ratios.

z = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1 (variance preserving) and
log_snr = log(alpha^2 / sigma^2). A schedule says which log-SNR belongs to a
time; everything else (alpha, sigma, posteriors, weights) follows from it.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion import choices
from lumiere_jax.typing import UserError

Values = Float[Array, "*shape"]


@runtime_checkable
class Schedule(Protocol):
  """How noisy a video is at each time: t=0 clean, t=1 pure noise."""

  def log_snr(self, t: Values) -> Values:
    """log-SNR at times t in [0, 1]: finite, never rising with t."""
    ...

  def time(self, log_snr: Values) -> Values:
    """The time in [0, 1] of a log-SNR: the inverse of `log_snr`."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
  """alpha = cos(pi t / 2) (Nichol and Dhariwal, without offset), clipped.

  Attributes:
    log_snr_min: lower end of the clip; keeps 1 / alpha finite.
    log_snr_max: upper end of the clip; keeps 1 / sigma finite.
    shift: added to the log-SNR before clipping. 2 log(base / resolution)
      gives a larger picture as much noise, seen at the size `base`, as the
      schedule gives there (simple diffusion, "shifted cosine").
  """

  log_snr_min: float = -15.0
  log_snr_max: float = 15.0
  shift: float = 0.0

  def __post_init__(self):
    if not self.log_snr_min < self.log_snr_max:
      raise UserError(
        f"schedule 'cosine': log_snr_min={self.log_snr_min} is not below "
        f"log_snr_max={self.log_snr_max}; give a smaller log_snr_min"
      )

  def log_snr(self, t: Values) -> Values:
    """-2 log tan(pi t / 2) + shift, within the clip."""
    # cos(x) as sin(pi/2 - x): the float32 pi/2 is too large, and its cosine
    # is negative; 1 - t is exact near t = 1.
    log_sin = lambda x: jnp.log(jnp.sin(math.pi / 2 * x))
    raw = 2 * (log_sin(1 - t) - log_sin(t)) + self.shift
    return jnp.clip(raw, self.log_snr_min, self.log_snr_max)

  def time(self, log_snr: Values) -> Values:
    """The inverse of `log_snr`, exact within the clip."""
    return 2 / math.pi * jnp.arctan(jnp.exp((self.shift - log_snr) / 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
  """sigma^2 = 1 - exp(-1e-4 - 10 t^2): beta rises linearly with time (DDPM).

  The continuous form of Imagen's last stage. It needs no clip: log-SNR runs
  from 9.2 (t=0) to -10 (t=1).
  """

  def log_snr(self, t: Values) -> Values:
    """-log(exp(1e-4 + 10 t^2) - 1)."""
    return -jnp.log(jnp.expm1(1e-4 + 10 * jnp.square(t)))

  def time(self, log_snr: Values) -> Values:
    """The inverse of `log_snr`; 0 or 1 outside its range."""
    square = (jax.nn.softplus(-log_snr) - 1e-4) / 10
    return jnp.sqrt(jnp.clip(square, 0, 1))


SCHEDULES = {"cosine": Cosine, "linear": Linear}


def make_schedule(name: str, **options: float) -> Schedule:
  """A schedule by name, e.g. `make_schedule("cosine", shift=-2.8)`.

  Raises:
    UserError: an unknown name or option.
  """
  return choices.make("schedule", SCHEDULES, name, options)


def alpha_sigma(log_snr: Values) -> tuple[Values, Values]:
  """Signal and noise scales (alpha, sigma) with alpha^2 + sigma^2 = 1.

  Both keep their relative precision where they are small, and an infinite
  log-SNR gives exactly (1, 0).
  """
  scale = lambda x: jnp.sqrt(jax.nn.sigmoid(x))
  return scale(log_snr), scale(-log_snr)
