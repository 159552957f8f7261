"""From noise to video: step rules, one scan over steps, the host's loop."""

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from lumiere_jax.diffusion import choices
from lumiere_jax.diffusion.noise import Keys, frame_noise
from lumiere_jax.diffusion.process import Denoiser, Prediction
from lumiere_jax.diffusion.schedule import Schedule, alpha_sigma
from lumiere_jax.typing import Cond, UserError, Video, typechecked

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
  as often as the rule likes. An infinite `log_snr_s` asks for the clean video.
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
    choices.check_unit("sampler 'ddpm': gamma", self.gamma)

  def step(
    self,
    prediction: Prediction,
    z: Video,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    noise: Video,
  ) -> Video:
    """Draws z_s from its posterior given z_t = `z` and the predicted x0."""
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
    choices.check_unit("sampler 'ddim': eta", self.eta)

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


SAMPLERS = {"ddpm": DDPM, "ddim": DDIM}


def make_sampler(name: str, **options: float) -> Rule:
  """A step rule by name, e.g. `make_sampler("ddpm", gamma=0.3)`.

  Raises:
    UserError: an unknown name or option, or a value out of range.
  """
  return choices.make("sampler", SAMPLERS, name, options)


@typechecked
def time_grid(schedule: Schedule, steps: int) -> Float[Array, "n"]:
  """The noise levels of `steps` sampling steps, even in time from t=1 to 0.

  Returns:
    (steps + 1,) log-SNR, rising. The last one is +inf whatever the schedule's
    clip: a last step to there returns the predicted x0, without noise.

  Raises:
    UserError: fewer than one step.
  """
  if steps < 1:
    raise UserError(f"steps={steps} is too few; use at least 1")
  log_snr = schedule.log_snr(jnp.linspace(1.0, 0.0, steps + 1))
  return log_snr.at[-1].set(jnp.inf)


@typechecked
def sample_chunk(
  denoiser: Denoiser,
  rule: Any,
  state: State,
  log_snrs: Float[Array, "n"],
  first_step: int | Int[Array, ""],
  keys: Keys,
  cond: Cond,
) -> State:
  """Runs consecutive sampling steps as one scan; to be jitted by the caller.

  Args:
    denoiser: network with guidance, windows, thresholds around it.
    rule: a `Rule`; static.
    state: `rule.init(z)`, or what the chunk before returned.
    log_snrs: (steps of this chunk + 1,) noise levels, a stretch of
      `time_grid`.
    first_step: the number of the chunk's first step in the whole; noise is
      keyed by it, so that chunks of any size draw the same.
    keys: (b,) keys of the samples.
    cond: conditioning.
  """
  num_frames, *shape = state.z.shape[1:]

  def denoise(z: Video, log_snr: LogSNR) -> Prediction:
    return denoiser(z, jnp.full(z.shape[:1], log_snr), cond)

  def body(state: State, step: tuple) -> tuple[State, None]:
    number, log_snr_t, log_snr_s = step
    noise = frame_noise(keys, number, num_frames, tuple(shape))
    return rule.advance(denoise, state, log_snr_t, log_snr_s, noise), None

  numbers = first_step + jnp.arange(log_snrs.shape[0] - 1)
  steps = (numbers, log_snrs[:-1], log_snrs[1:])
  return jax.lax.scan(body, state, steps)[0]


def sample(
  chunk_fn: Callable[[State, np.ndarray, np.int32], State],
  state: State,
  log_snrs: Float[Array, "n"],
  chunk: int,
  callback: Callable[[int, Video], bool | None] | None = None,
) -> Video:
  """Runs all steps in equal chunks, with the host in between.

  Args:
    chunk_fn: `chunk_fn(state, log_snrs, first_step)`: a jitted `sample_chunk`
      with the rest bound.
    state: `rule.init(z)`.
    log_snrs: (steps + 1,) all noise levels, see `time_grid`.
    chunk: most steps per chunk. The largest divisor of the number of steps up
      to it is used, so that one compilation serves all chunks.
    callback: called as `callback(steps done, z)` after every chunk, for
      progress and previews. Returning True stops; so does raising.

  Returns:
    The video; the canvas as it stands if the callback stopped early.

  Raises:
    UserError: a chunk below 1.
  """
  if chunk < 1:
    raise UserError(f"chunk={chunk} is too small; use at least 1 step")
  # On the host: slicing device arrays would compile once per chunk.
  log_snrs = np.asarray(log_snrs)
  steps = len(log_snrs) - 1
  size = max(d for d in range(1, min(chunk, steps) + 1) if steps % d == 0)
  for first in range(0, steps, size):
    levels = log_snrs[first : first + size + 1]
    state = chunk_fn(state, levels, np.int32(first))
    if callback is not None and callback(first + size, state.z):
      break
  return state.z
