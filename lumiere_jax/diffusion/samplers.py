"""Step rules: how sampling gets from one noise level to the next."""

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax import errors
from lumiere_jax.diffusion.prediction import Prediction
from lumiere_jax.diffusion.schedules import alpha_sigma
from lumiere_jax.typing import Video

LogSNR = Float[Array, ""]


@struct.dataclass
class State:
  """What passes from one sampling step to the next.

  Attributes:
    z: (b, t, h, w, c) the canvas: noise at first, the video at last.
    memory: what the rule keeps of earlier steps; () for one-step rules.
  """

  z: Video
  memory: Any = ()


class Rule(Protocol):
  """How to step from one noise level to the next lower one.

  The denoiser it is given is bound to the conditioning and may be evaluated
  as often as the rule likes. An infinite `log_snr_s` asks for the clean video;
  from pure noise, `log_snr_t` is minus infinity.
  """

  def init(self, z: Video) -> State:
    """The state before the first step."""
    ...

  def advance(
    self,
    denoise: Callable[[Video, LogSNR], Prediction],
    state: State,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> State:
    """Steps from `log_snr_t` to `log_snr_s` >= `log_snr_t`."""
    ...


class OneStepRule:
  """A rule that evaluates once per step and remembers nothing."""

  def init(self, z: Video) -> State:
    """The state before the first step."""
    return State(z)

  def advance(
    self,
    denoise: Callable[[Video, LogSNR], Prediction],
    state: State,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> State:
    """See `Rule`."""
    prediction = denoise(state.z, log_snr_t)
    return State(self.step(prediction, state.z, log_snr_t, log_snr_s, noise))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(OneStepRule):
  """Ancestral sampling (Imagen, App. A).

  Attributes:
    gamma: in [0, 1]; the variance of the added noise, from the posterior's
      (0) to the forward step's (1), interpolated in the logarithm. A learned
      log-variance takes its place where the denoiser predicts one.
  """

  gamma: float = 0.0

  def __post_init__(self):
    errors.check_unit("sampler 'ddpm': gamma", self.gamma)

  def step(
    self,
    prediction: Prediction,
    z: Video,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> Video:
    """Draws z_s from its posterior given z_t = `z` and the predicted x0."""
    # At pure noise a ratio below would be 0 / 0; this is as pure.
    log_snr_t = jnp.maximum(log_snr_t, -80.0)
    alpha_t, sigma_t = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    ratio = jnp.exp(log_snr_t - log_snr_s)
    rest = -jnp.expm1(log_snr_t - log_snr_s)
    mean = ratio * alpha_s / alpha_t * z + rest * alpha_s * prediction.x0
    gamma = self.gamma if prediction.log_var is None else prediction.log_var
    small, large = rest * sigma_s**2, rest * sigma_t**2
    # Where the posterior is certain (the last step) no gamma adds noise; the
    # product alone would at gamma = 1, as 0^0 = 1.
    variance = jnp.where(small > 0, small ** (1 - gamma) * large**gamma, 0.0)
    return mean + jnp.sqrt(variance) * noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(OneStepRule):
  """DDIM (Song et al., eq. 12 and 16).

  Attributes:
    eta: in [0, 1]; 0 is deterministic, 1 equals `DDPM(gamma=0)`. A learned
      log-variance has no part in it.
  """

  eta: float = 0.0

  def __post_init__(self):
    errors.check_unit("sampler 'ddim': eta", self.eta)

  def step(
    self,
    prediction: Prediction,
    z: Video,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> Video:
    """z_s = alpha_s x0 + sigma_s (kept share of eps + fresh noise)."""
    del z  # known through x0 and eps
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    if self.eta == 0:  # so that the unused noise is never drawn
      return alpha_s * prediction.x0 + sigma_s * prediction.eps
    fresh = self.eta**2 * -jnp.expm1(log_snr_t - log_snr_s)
    mixed = jnp.sqrt(1 - fresh) * prediction.eps + jnp.sqrt(fresh) * noise
    return alpha_s * prediction.x0 + sigma_s * mixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M:
  """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): deterministic, multistep.

  Steps in lambda = log_snr / 2, with x0 extrapolated from the step before. The
  first and the last step are of first order; so is one from a level that the
  step before had not left (a clipped schedule has such). The memory is the
  last x0 and its log-SNR.
  """

  def init(self, z: Video) -> State:
    """The state before the first step: a memory infinitely far away."""
    return State(z, (jnp.zeros_like(z), jnp.float32(-jnp.inf)))

  def advance(
    self,
    denoise: Callable[[Video, LogSNR], Prediction],
    state: State,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> State:
    """See `Rule`."""
    del noise
    _, sigma_t = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    x0 = denoise(state.z, log_snr_t).x0
    before, log_snr_r = state.memory
    step, step_before = log_snr_s - log_snr_t, log_snr_t - log_snr_r
    usable = jnp.isfinite(step) & (step_before > 0)
    slope = jnp.where(usable, step / (2 * step_before), 0.0)
    target = x0 + slope * (x0 - before)
    z = sigma_s / sigma_t * state.z - alpha_s * jnp.expm1(-step / 2) * target
    return State(z, (x0, log_snr_t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
  """Heun's method on the probability flow (EDM, algorithm 1 without churn).

  The flow is d(z / alpha) / d(sigma / alpha) = eps, solved with the mean of
  eps at both ends of a step; to the clean video, by Euler. Two evaluations a
  step. Made for grids whose noisiest steps are short: where the first one
  spans decades of sigma / alpha, as in few steps of a schedule even in time,
  the other rules are closer.
  """

  def init(self, z: Video) -> State:
    """The state before the first step."""
    return State(z)

  def advance(
    self,
    denoise: Callable[[Video, LogSNR], Prediction],
    state: State,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> State:
    """See `Rule`."""
    del noise
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    first = denoise(state.z, log_snr_t)
    euler = alpha_s * first.x0 + sigma_s * first.eps
    # Euler's step is exact to the clean video, and from pure noise.
    exact = jnp.isinf(log_snr_s) | jnp.isinf(log_snr_t)
    x0 = jax.lax.cond(
      exact, lambda: first.x0, lambda: denoise(euler, log_snr_s).x0
    )
    # At the end of Euler's step eps differs from the first one by (first x0 -
    # x0) alpha_s / sigma_s; so written nothing large cancels at high noise.
    weight = jnp.expm1((log_snr_s - log_snr_t) / 2) / 2
    weight = jnp.where(exact, 0.0, weight)
    return State(euler + weight * alpha_s * (x0 - first.x0))


SAMPLERS = {
  "ddpm": DDPM,
  "ddim": DDIM,
  "dpmpp_2m": DPMSolverPP2M,
  "heun": Heun,
}


def make_sampler(name: str, **options: float) -> Rule:
  """A step rule by name, e.g. `make_sampler("ddpm", gamma=0.3)`.

  Raises:
    UserError: an unknown name or option, or a value out of range.
  """
  return errors.make("sampler", SAMPLERS, name, options)
