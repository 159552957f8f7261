"""Samplers, as steps between noise levels."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.prediction import Prediction
from lumiere_jax.diffusion.schedules import alpha_sigma
from lumiere_jax.errors import build_by_name, check_unit
from lumiere_jax.typing import Video

LogSNR = Float[Array, ""]
Denoise = Callable[[Video, LogSNR], Prediction]


@struct.dataclass
class State:
  """State between sampling steps.

  Attributes:
    z: (b, t, h, w, c), from noise to the video.
    memory: of a multistep sampler; () for one-step samplers.
  """

  z: Video
  memory: Any = ()


class Sampler:
  """Steps from one noise level to the next lower one.

  A sampler with one evaluation per step and no memory defines `step`, others
  define `advance`.
  """

  def init(self, z: Video) -> State:
    """The state before the first step."""
    return State(z)

  def advance(
    self,
    denoise: Denoise,
    state: State,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> State:
    """Steps from `log_snr_t` to `log_snr_s` >= `log_snr_t`.

    Args:
      denoise: bound to the conditioning; may be called any number of times.
      state: at `log_snr_t`.
      log_snr_t: minus infinity for pure noise.
      log_snr_s: infinity for the clean video.
      noise: standard normal noise of this step.
    """
    prediction = denoise(state.z, log_snr_t)
    return State(self.step(prediction, state.z, log_snr_t, log_snr_s, noise))

  def step(
    self,
    prediction: Prediction,
    z: Video,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> Video:
    """z at `log_snr_s`, from z and the prediction at `log_snr_t`."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
  """Ancestral sampling (Imagen, App. A).

  Attributes:
    gamma: in [0, 1]; the log-variance of the added noise, interpolated between
      the posterior's (0) and the forward step's (1). If the denoiser predicts a
      log-variance, that is used instead.
  """

  gamma: float = 0.0

  def __post_init__(self):
    check_unit("sampler 'ddpm': gamma", self.gamma)

  def step(self, prediction, z, log_snr_t, log_snr_s, noise):
    """Draws z_s from its posterior given z_t = `z` and the predicted x0."""
    # Avoids 0 / 0 below at pure noise.
    log_snr_t = jnp.maximum(log_snr_t, -80.0)
    alpha_t, sigma_t = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    ratio = jnp.exp(log_snr_t - log_snr_s)
    rest = -jnp.expm1(log_snr_t - log_snr_s)
    mean = ratio * alpha_s / alpha_t * z + rest * alpha_s * prediction.x0
    gamma = self.gamma if prediction.log_var is None else prediction.log_var
    small, large = rest * sigma_s**2, rest * sigma_t**2
    # The last step adds no noise; the product alone would at gamma = 1, as
    # 0^0 = 1.
    variance = jnp.where(small > 0, small ** (1 - gamma) * large**gamma, 0.0)
    return mean + jnp.sqrt(variance) * noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
  """DDIM (Song et al., eq. 12 and 16).

  Attributes:
    eta: in [0, 1]; 0 is deterministic, 1 equals `DDPM(gamma=0)`. A learned
      log-variance is ignored.
  """

  eta: float = 0.0

  def __post_init__(self):
    check_unit("sampler 'ddim': eta", self.eta)

  def step(self, prediction, z, log_snr_t, log_snr_s, noise):
    """z_s = alpha_s x0 + sigma_s (a share of eps + fresh noise)."""
    del z  # Follows from x0 and eps.
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    if self.eta == 0:  # Lets the compiler skip the unused noise.
      return alpha_s * prediction.x0 + sigma_s * prediction.eps
    fresh = self.eta**2 * -jnp.expm1(log_snr_t - log_snr_s)
    mixed = jnp.sqrt(1 - fresh) * prediction.eps + jnp.sqrt(fresh) * noise
    return alpha_s * prediction.x0 + sigma_s * mixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(Sampler):
  """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): deterministic, multistep.

  Steps in lambda = log_snr / 2, with x0 extrapolated from the previous step.
  The first and the last step are of first order, and so are steps after one of
  length zero (of a clipped schedule). The memory is the previous x0 and its
  log-SNR.
  """

  def init(self, z: Video) -> State:
    """The state before the first step; the memory is at log-SNR -inf."""
    return State(z, (jnp.zeros_like(z), jnp.float32(-jnp.inf)))

  def advance(self, denoise, state, log_snr_t, log_snr_s, noise):
    """See `Sampler`."""
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
class Heun(Sampler):
  """Heun's method on the probability flow (EDM, algorithm 1 without churn).

  Solves d(z / alpha) / d(sigma / alpha) = eps with the mean of eps at both ends
  of a step, and the last step with Euler. Two evaluations per step. It needs
  grids with short steps at high noise: if the first step spans decades of
  sigma / alpha, as with few steps even in a schedule's time, other samplers are
  more accurate.
  """

  def advance(self, denoise, state, log_snr_t, log_snr_s, noise):
    """See `Sampler`."""
    del noise
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    first = denoise(state.z, log_snr_t)
    euler = alpha_s * first.x0 + sigma_s * first.eps
    # Euler is exact to the clean video and from pure noise.
    exact = jnp.isinf(log_snr_s) | jnp.isinf(log_snr_t)
    x0 = jax.lax.cond(
      exact, lambda: first.x0, lambda: denoise(euler, log_snr_s).x0
    )
    # Expresses the difference of eps at both ends by that of x0, times
    # alpha_s / sigma_s: avoids cancellation at high noise.
    weight = jnp.expm1((log_snr_s - log_snr_t) / 2) / 2
    weight = jnp.where(exact, 0.0, weight)
    return State(euler + weight * alpha_s * (x0 - first.x0))


SAMPLERS = {"ddpm": DDPM, "ddim": DDIM, "dpmpp_2m": DPMSolverPP2M, "heun": Heun}


def make_sampler(name: str, **options: float) -> Sampler:
  """A sampler by name, e.g. `make_sampler("ddpm", gamma=0.3)`."""
  return build_by_name("sampler", SAMPLERS, name, options)
