"""The variational bound, as the loss of a learned log-variance."""

from flax import struct
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float, Key

from lumiere_jax import errors
from lumiere_jax.diffusion.noise import Keys
from lumiere_jax.diffusion.noise_levels import NoiseDistribution
from lumiere_jax.diffusion.prediction import (
  KINDS,
  Denoiser,
  Prediction,
  add_noise,
  expand,
  to_v,
)
from lumiere_jax.diffusion.schedules import Schedule, alpha_sigma
from lumiere_jax.errors import check_choice
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

STEP = 1 / 1000
"""The time between neighbouring steps: models with a learned variance are
trained on 1000 of them."""

HALF_BIN = 1 / 255
"""Half the distance of neighbouring pixel values, 256 of them in [-1, 1]."""

Levels = Float[Array, "b 1 1 1 1"]


@typechecked
def variational_bound(
  prediction: Prediction,
  truth: Prediction,
  log_snr: PerSample,
  schedule: Schedule,
) -> PerSample:
  """L_vlb of Improved DDPM (section 3.1) in bits per dimension, rescaled.

  KL(q(z_s | z_t, x0) || p(z_s | z_t)) of the step from t to s = t - 1/1000,
  and -log p(x0 | z_t) of the last one. It trains the log-variance alone: the
  predicted mean is held fixed. Of the 1000 terms one is drawn, and the sum is
  weighted by 1/1000 (guided-diffusion's "rescaled MSE"), so each counts 1.

  Args:
    prediction: with a log-variance.
    truth: the clean videos and the noise that was added to them.
    log_snr: how much of it was added.
    schedule: gives the neighbouring step its log-SNR.
  """
  t = schedule.time(log_snr)
  is_last = expand(t < 0.99 * STEP)
  here = expand(log_snr)
  # Both are computed for all, so both stay finite: gradients pass through.
  below = expand(schedule.log_snr(jnp.maximum(t - STEP, 0.0)))
  above = expand(schedule.log_snr(jnp.minimum(t + STEP, 1.0)))
  nats = jnp.where(
    is_last,
    _decoder(prediction, truth.x0, here, above),
    _divergence(prediction, truth.eps, here, below),
  )
  return jnp.mean(nats, axis=(1, 2, 3, 4)) / jnp.log(2.0)


def _divergence(
  prediction: Prediction, eps: Video, log_snr_t: Levels, log_snr_s: Levels
) -> Video:
  """KL of two Gaussians: the posterior given x0, and the predicted one.

  With w the excess of the predicted log-variance over the posterior's, it is
  (w + e^-w - 1 + e^-w (SNR_s - SNR_t) (x0 error)^2) / 2; the last product is
  written in the error of eps, which stays precise at every noise level.
  """
  error = jnp.square(jax.lax.stop_gradient(prediction.eps) - eps)
  excess = prediction.log_var * (
    jax.nn.log_sigmoid(-log_snr_t) - jax.nn.log_sigmoid(-log_snr_s)
  )
  error = jnp.expm1(log_snr_s - log_snr_t) * error
  return (excess + jnp.expm1(-excess) + jnp.exp(-excess) * error) / 2


def _decoder(
  prediction: Prediction, x0: Video, log_snr_t: Levels, log_snr_u: Levels
) -> Video:
  """-log p(x0 | z_t) of the last step: the Gaussian's mass in x0's bin.

  There the posterior is certain; the range of log-variances starts at that of
  the step before instead, which came from `log_snr_u` (as IF's does). The
  outermost bins reach to infinity (DDPM, eq. 13).
  """
  _, sigma = alpha_sigma(log_snr_t)
  largest = 2 * jnp.log(sigma)
  rest = -jnp.expm1(log_snr_u - log_snr_t)
  smallest = largest + jnp.log(jnp.maximum(rest, 1e-6))
  place = prediction.log_var
  std = jnp.exp(0.5 * ((1 - place) * smallest + place * largest))
  # Turned so that the tail behind the bin is the left one, where the normal
  # distribution function loses nothing.
  distance = x0 - jax.lax.stop_gradient(prediction.x0)
  is_edge = jnp.abs(x0) > 0.999
  distance = -jnp.where(is_edge, jnp.sign(x0) * distance, jnp.abs(distance))
  cdf = lambda x: ndtr(x / std)
  behind = jnp.where(is_edge, 0.0, cdf(distance - HALF_BIN))
  return -jnp.log(jnp.maximum(cdf(distance + HALF_BIN) - behind, 1e-12))


WEIGHTS = ("none", "min_snr", "v")
"""How losses at different noise levels are weighted."""


@struct.dataclass
class Draws:
  """What is random in the loss of a batch, sample by sample.

  A slice of it goes with the same slice of the batch, so that neither
  micro-batches nor a mesh change what is drawn.

  Attributes:
    quantile: (b,) in [0, 1): which noise level of the distribution.
    keys: (b,) keys of the noise.
  """

  quantile: PerSample
  keys: Keys


@typechecked
def draw(key: Key[Array, ""], batch: int) -> Draws:
  """Draws for a whole batch: noise levels are stratified over it.

  Args:
    key: random key of this step.
    batch: number of samples, those of all micro-batches together.
  """
  level_key, noise_key = jax.random.split(key)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, jnp.arange(batch))
  return Draws(stratified(level_key, batch), keys)


@typechecked
def stratified(key: Key[Array, ""], batch: int) -> PerSample:
  """Quantiles ~ U(0, 1), one in each of `batch` equal strata.

  Each is still uniform, their mean over the batch varies less (Variational
  Diffusion Models, App. I.1).
  """
  return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0


@typechecked
def loss_per_sample(
  denoiser: Denoiser,
  x0: Video,
  eps: Video,
  log_snr: PerSample,
  cond: Cond,
  kind: str,
) -> PerSample:
  """Mean squared error of each sample at a given noise and noise level.

  Args:
    denoiser: the network under training or test.
    x0: clean videos in [-1, 1].
    eps: standard normal noise.
    log_snr: how much of it to add.
    cond: conditioning.
    kind: the space of the error, one of `process.KINDS`; "eps" is the loss
      of Imagen, "v" that of Imagen Video.

  Raises:
    UserError: an unknown kind.
  """
  check_choice("loss kind", kind, KINDS)
  prediction, truth = _predict(denoiser, x0, eps, log_snr, cond)
  return _squared_error(prediction, truth, kind)


@typechecked
def min_snr_weight(
  log_snr: PerSample, kind: str, gamma: float | int
) -> PerSample:
  """The weight that makes the loss min(SNR, gamma) times that of x0.

  Min-SNR (Hang et al. 2023): levels of little noise, whose tasks are alike, do
  not drown the others.

  Args:
    log_snr: noise levels.
    kind: the space of the loss, one of `process.KINDS`.
    gamma: where the weight of x0 stops growing; the paper takes 5.

  Raises:
    UserError: an unknown kind.
  """
  check_choice("loss kind", kind, KINDS)
  snr = jnp.exp(log_snr)
  return jnp.minimum(snr, gamma) / _unit(snr, kind)


@typechecked
def v_weight(log_snr: PerSample, kind: str, gamma: float | int) -> PerSample:
  """The weight that makes the loss min(SNR + 1, gamma) times that of x0.

  That of v (Progressive Distillation, arXiv 2202.00512, section 4), so that
  much noise counts as well, whatever is predicted.

  Args:
    log_snr: noise levels.
    kind: the space of the loss, one of `process.KINDS`.
    gamma: where the weight of x0 stops growing.
  """
  snr = jnp.exp(log_snr)
  return jnp.minimum(snr + 1, gamma) / _unit(snr, kind)


def _unit(snr: PerSample, kind: str) -> PerSample | float:
  """How many times the loss of x0 that of a kind is."""
  return {"x0": 1.0, "eps": snr, "v": snr + 1}[kind]


@typechecked
def diffusion_loss(
  denoiser: Denoiser,
  x0: Video,
  cond: Cond,
  draws: Draws,
  *,
  noise: NoiseDistribution,
  schedule: Schedule,
  kind: str = "eps",
  weight: str = "none",
  gamma: float | int = 5.0,
) -> tuple[Float[Array, ""], dict[str, PerSample]]:
  """The diffusion loss at the drawn noise levels and noise.

  A prediction with a log-variance adds the variational bound that trains it:
  IF's hybrid loss (Improved DDPM, eq. 16, as guided-diffusion weighs it).

  Args:
    denoiser: the network under training.
    x0: clean videos in [-1, 1].
    cond: conditioning.
    draws: see `draw`.
    noise: which noise levels training draws.
    schedule: tells the neighbouring levels of a learned variance.
    kind: the space of the error, one of `process.KINDS`.
    weight: of the error by noise level: "none", "min_snr" or "v".
    gamma: see `min_snr_weight` and `v_weight`.

  Returns:
    The mean loss, and {"loss_per_sample", "log_snr"}, each (b,), from which
    losses by noise level are binned.

  Raises:
    UserError: an unknown kind or weight.
  """
  check_choice("loss kind", kind, KINDS)
  check_choice("loss weight", weight, WEIGHTS)
  log_snr = noise.log_snr(draws.quantile)
  normal = lambda key: jax.random.normal(key, x0.shape[1:])
  eps = jax.vmap(normal)(draws.keys)
  prediction, truth = _predict(denoiser, x0, eps, log_snr, cond)
  losses = _squared_error(prediction, truth, kind)
  weigh = {"min_snr": min_snr_weight, "v": v_weight}
  if weight in weigh:
    losses *= weigh[weight](log_snr, kind, gamma)
  if prediction.log_var is not None:
    losses += variational_bound(prediction, truth, log_snr, schedule)
  return losses.mean(), {"loss_per_sample": losses, "log_snr": log_snr}


def _predict(
  denoiser: Denoiser, x0: Video, eps: Video, log_snr: PerSample, cond: Cond
) -> tuple[Prediction, Prediction]:
  """What the denoiser makes of noised videos, and what is true of them."""
  x0, eps = x0.astype(jnp.float32), eps.astype(jnp.float32)
  truth = Prediction(x0, eps, to_v(x0, eps, log_snr))
  return denoiser(add_noise(x0, eps, log_snr), log_snr, cond), truth


def _squared_error(
  prediction: Prediction, truth: Prediction, kind: str
) -> PerSample:
  error = getattr(prediction, kind) - getattr(truth, kind)
  return jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))


@typechecked
def drop_captions(
  keys: Keys,
  cond: Cond,
  null_text: Float[Array, "l e"],
  null_mask: Bool[Array, "l"] | None,
  rate: float | int,
) -> Cond:
  """Replaces each sample's text by "no text" with probability `rate`.

  It makes the unconditional model of classifier-free guidance (Imagen: rate
  0.1). Frames and noise level are kept.

  Args:
    keys: (b,) one random key per sample.
    cond: conditioning of the batch.
    null_text: what stands for "no text": zeros (Imagen) or the encoding of
      the empty caption (IF).
    null_mask: its mask; None: every token is real.
    rate: in [0, 1].

  Raises:
    UserError: a rate outside [0, 1].
  """
  errors.check_unit("caption dropout rate", rate)
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
  null_text = null_text.astype(cond.text.dtype)
  text = jnp.where(drop[:, None, None], null_text, cond.text)
  return cond.replace(text=text, text_mask=_drop_mask(drop, cond, null_mask))


def _drop_mask(
  drop: Bool[Array, "b"], cond: Cond, null_mask: Bool[Array, "l"] | None
) -> Bool[Array, "b l"] | None:
  if cond.text_mask is None and null_mask is None:
    return None
  everything = jnp.ones(cond.text.shape[:2], bool)
  mask = everything if cond.text_mask is None else cond.text_mask
  null = everything if null_mask is None else null_mask
  return jnp.where(drop[:, None], null, mask)
