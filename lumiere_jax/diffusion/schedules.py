"""Noise schedules, as log signal-to-noise ratios over time.

z = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1 (variance preserving) and
log_snr = log(alpha^2 / sigma^2). A schedule maps times to log-SNR; everything
else (alpha, sigma, posteriors, weights) follows from that.

Every schedule has a `shift` that is added to its log-SNR. 2 log(base /
resolution) gives a larger image the same noise, seen at the size `base` (simple
diffusion, section 3.1).

Schedules have three uses, which may have different ones: the network embeds the
time of a log-SNR, training draws times, and sampling may step evenly in time
(noise_levels.py).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from lumiere_jax.errors import UserError, build_by_name

Values = Float[Array, "*shape"]


LIMIT = 20.0
"""Largest |log-SNR|, so that eps gives a finite x0."""

SAMPLED_FROM = -15.0
"""First level of `Cosine.grid`, as bundles of format 1 were sampled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The noise level at each time, from t=0 (clean) to t=1 (noise).

  Attributes:
    shift: added to the log-SNR.
  """

  shift: float = 0.0

  def log_snr(self, t: Values) -> Values:
    """log-SNR at times t in [0, 1]: finite, non-increasing in t."""
    raise NotImplementedError

  def time(self, log_snr: Values) -> Values:
    """The time of a log-SNR; 0 or 1 outside the range of `log_snr`."""
    raise NotImplementedError

  def grid(self, steps: int) -> Float[Array, "steps"]:
    """The log-SNRs that sampling steps start from, as originally published."""
    return self.trailing(steps)

  def trailing(self, steps: int) -> Float[Array, "steps"]:
    """Log-SNRs even in time, including the noisiest (Lin et al. 2024)."""
    return self.log_snr(jnp.linspace(1.0, 0.0, steps + 1)[:-1])


class Cosine(Schedule):
  """alpha = cos(pi t / 2) (Nichol and Dhariwal, without offset).

  Clipped to [-LIMIT, LIMIT] after the shift.
  """

  def log_snr(self, t: Values) -> Values:
    """-2 log tan(pi t / 2) + shift, clipped."""
    # cos(x) as sin(pi/2 - x): the float32 pi/2 is too large, and its cosine
    # is negative; 1 - t is exact near t = 1.
    log_sin = lambda x: jnp.log(jnp.sin(math.pi / 2 * x))
    raw = 2 * (log_sin(1 - t) - log_sin(t)) + self.shift
    return jnp.clip(raw, -LIMIT, LIMIT)

  def time(self, log_snr: Values) -> Values:
    """The inverse of `log_snr`, exact within the clip."""
    return 2 / math.pi * jnp.arctan(jnp.exp((self.shift - log_snr) / 2))

  def grid(self, steps: int) -> Float[Array, "steps"]:
    """Even in time from 1, clipped at `SAMPLED_FROM`."""
    return jnp.maximum(self.trailing(steps), SAMPLED_FROM)


class Linear(Schedule):
  """sigma^2 = 1 - exp(-1e-4 - 10 t^2): beta rises linearly with time (DDPM).

  The continuous form of Imagen's last stage. It needs no clip: log-SNR runs
  from 9.2 (t=0) to -10 (t=1).
  """

  def log_snr(self, t: Values) -> Values:
    """-log(exp(1e-4 + 10 t^2) - 1) + shift."""
    return self.shift - jnp.log(jnp.expm1(1e-4 + 10 * jnp.square(t)))

  def time(self, log_snr: Values) -> Values:
    """The inverse of `log_snr`."""
    square = (jax.nn.softplus(self.shift - log_snr) - 1e-4) / 10
    return jnp.sqrt(jnp.clip(square, 0, 1))


class EvenLogSNR(Schedule):
  """log-SNR falls evenly from LIMIT (t=0) to -LIMIT (t=1)."""

  def log_snr(self, t: Values) -> Values:
    """20 - 40 t + shift."""
    return LIMIT - 2 * LIMIT * t + self.shift

  def time(self, log_snr: Values) -> Values:
    """The inverse of `log_snr`."""
    return jnp.clip((LIMIT + self.shift - log_snr) / (2 * LIMIT), 0, 1)


class SquaredCosCapV2(Schedule):
  """The 1000 steps of DeepFloyd IF: the cosine in betas that end at 0.999.

  Step k (0 is the cleanest) has time k / 1000, which the network embeds. Times
  between steps belong to the step before, so that t ~ U(0, 1) draws all steps
  equally often. Clipped to [-LIMIT, LIMIT] after the shift.
  """

  def log_snr(self, t: Values) -> Values:
    """log-SNR of step floor(1000 t)."""
    # The margin is for times k / 1000, which rounding may put below k.
    step = jnp.floor(NUM_STEPS * t + 0.01).astype(jnp.int32)
    table = jnp.asarray(_table(self.shift), jnp.float32)
    return table[jnp.clip(step, 0, NUM_STEPS - 1)]

  def time(self, log_snr: Values) -> Values:
    """k / 1000 for the step k with the nearest log-SNR."""
    table = _table(self.shift)
    between = jnp.asarray((table[1:] + table[:-1]) / 2, jnp.float32)
    # The table decreases; searchsorted needs increasing values.
    return jnp.asarray(_TIMES)[jnp.searchsorted(-between, -log_snr)]

  def grid(self, steps: int) -> Float[Array, "steps"]:
    """Every (1000 // steps)-th step from 0, in decreasing order (as in IF)."""
    return self._at(np.arange(steps)[::-1] * (NUM_STEPS // steps))

  def trailing(self, steps: int) -> Float[Array, "steps"]:
    """Evenly spaced steps, starting from the last one."""
    ends = NUM_STEPS - np.arange(steps) * (NUM_STEPS / steps)
    return self._at(np.round(ends).astype(int) - 1)

  def _at(self, numbers: Int[np.ndarray, "n"]) -> Float[Array, "n"]:
    if len(numbers) > NUM_STEPS:
      raise UserError(
        f"steps={len(numbers)}",
        f"is more than the {NUM_STEPS} steps of schedule 'squaredcos_cap_v2'",
        f"use at most {NUM_STEPS}",
      )
    return jnp.asarray(_table(self.shift)[numbers], jnp.float32)


NUM_STEPS = 1000
_TIMES = np.float32(np.arange(NUM_STEPS) / NUM_STEPS)


@functools.cache
def _table(shift: float) -> Float[np.ndarray, "1000"]:
  """log-SNR of the steps of `SquaredCosCapV2`, in float64."""
  edges = np.arange(NUM_STEPS + 1) / NUM_STEPS
  cosine = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
  betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
  alpha2 = np.cumprod(1 - betas)
  return np.clip(np.log(alpha2) - np.log1p(-alpha2) + shift, -LIMIT, LIMIT)


SCHEDULES = {
  "cosine": Cosine,
  "linear": Linear,
  "squaredcos_cap_v2": SquaredCosCapV2,
  "log_snr": EvenLogSNR,
}


def make_schedule(name: str, **options: float) -> Schedule:
  """A schedule by name, e.g. `make_schedule("cosine", shift=-2.8)`."""
  return build_by_name("schedule", SCHEDULES, name, options)


def alpha_sigma(log_snr: Values) -> tuple[Values, Values]:
  """Signal and noise scales (alpha, sigma) with alpha^2 + sigma^2 = 1.

  Both are precise where they are small; an infinite log-SNR gives (1, 0).
  """
  scale = lambda x: jnp.sqrt(jax.nn.sigmoid(x))
  return scale(log_snr), scale(-log_snr)
