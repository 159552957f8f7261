"""Diffusion losses, the variational bound and caption dropout."""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float, Key

from lumiere_jax.diffusion.noise import Keys
from lumiere_jax.diffusion.noise_levels import NoiseDistribution
from lumiere_jax.diffusion.prediction import (
  KINDS,
  Denoiser,
  Prediction,
  add_noise,
  expand,
  paired_masks,
  to_v,
)
from lumiere_jax.diffusion.schedules import Schedule, alpha_sigma
from lumiere_jax.errors import check_choice, check_unit
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

STEP = 1 / 1000
"""The time between steps: models with a learned variance train on 1000."""

HALF_BIN = 1 / 255
"""Half the distance between adjacent of the 256 pixel values in [-1, 1]."""

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
  and -log p(x0 | z_t) of the last one. It trains only the log-variance; there
  is a stop-gradient on the predicted mean. One of the 1000 terms is drawn, and
  the sum is weighted by 1/1000 (guided-diffusion's "rescaled MSE"), so the
  weight of each is 1.

  The prediction has a log-variance; the truth is the clean videos and the noise
  added to them. The schedule gives the log-SNR of the neighbouring steps.
  """
  share = prediction.log_var
  assert share is not None
  t = schedule.time(log_snr)
  is_last = expand(t < 0.99 * STEP)
  here = expand(log_snr)
  # Both branches are computed and must be finite: gradients pass through both.
  below = expand(schedule.log_snr(jnp.maximum(t - STEP, 0.0)))
  above = expand(schedule.log_snr(jnp.minimum(t + STEP, 1.0)))
  nats = jnp.where(
    is_last,
    _decoder(prediction.x0, share, truth.x0, here, above),
    _divergence(prediction.eps, share, truth.eps, here, below),
  )
  return jnp.mean(nats, axis=(1, 2, 3, 4)) / jnp.log(2.0)


def _divergence(
  mean: Video, share: Video, eps: Video, log_snr_t: Levels, log_snr_s: Levels
) -> Video:
  """KL of two Gaussians: the posterior given x0, and the predicted one.

  With w the predicted log-variance minus the posterior's, it is
  (w + e^-w - 1 + e^-w (SNR_s - SNR_t) (x0 error)^2) / 2. The last product is
  expressed by the error of eps, which is precise at every noise level.
  """
  error = jnp.square(jax.lax.stop_gradient(mean) - eps)
  excess = share * (
    jax.nn.log_sigmoid(-log_snr_t) - jax.nn.log_sigmoid(-log_snr_s)
  )
  error = jnp.expm1(log_snr_s - log_snr_t) * error
  return (excess + jnp.expm1(-excess) + jnp.exp(-excess) * error) / 2


def _decoder(
  mean: Video, share: Video, x0: Video, log_snr_t: Levels, log_snr_u: Levels
) -> Video:
  """-log p(x0 | z_t) of the last step: the Gaussian's mass in the bin of x0.

  The posterior of this step has no variance. As in IF, the range of
  log-variances starts at that of the step before, which came from `log_snr_u`.
  The outermost bins extend to infinity (DDPM, eq. 13).
  """
  _, sigma = alpha_sigma(log_snr_t)
  largest = 2 * jnp.log(sigma)
  rest = -jnp.expm1(log_snr_u - log_snr_t)
  smallest = largest + jnp.log(jnp.maximum(rest, 1e-6))
  std = jnp.exp(0.5 * ((1 - share) * smallest + share * largest))
  # Mirrored so that the bin is in the left tail, where the normal distribution
  # function is precise.
  distance = x0 - jax.lax.stop_gradient(mean)
  is_edge = jnp.abs(x0) > 0.999
  distance = -jnp.where(is_edge, jnp.sign(x0) * distance, jnp.abs(distance))
  cdf = lambda x: ndtr(x / std)
  below = jnp.where(is_edge, 0.0, cdf(distance - HALF_BIN))
  return -jnp.log(jnp.maximum(cdf(distance + HALF_BIN) - below, 1e-12))


WEIGHTS = ("none", "min_snr", "v")
"""Loss weightings by noise level."""


@struct.dataclass
class Draws:
  """The random numbers of the loss, per sample.

  They are sliced with the batch, so that micro-batches and meshes do not change
  them.

  Attributes:
    quantile: (b,) in [0, 1), of the distribution of noise levels.
    keys: (b,) keys of the noise.
  """

  quantile: PerSample
  keys: Keys


@typechecked
def draw(key: Key[Array, ""], batch: int) -> Draws:
  """Draws of a step for all micro-batches, with stratified noise levels."""
  level_key, noise_key = jax.random.split(key)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, jnp.arange(batch))
  return Draws(stratified(level_key, batch), keys)


@typechecked
def stratified(key: Key[Array, ""], batch: int) -> PerSample:
  """Quantiles ~ U(0, 1), one in each of `batch` equal strata.

  Each is uniform, but their mean has less variance (Variational Diffusion
  Models, App. I.1).
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
  """Mean squared error of each sample for given noise and noise levels.

  `kind` is the space of the error, one of `prediction.KINDS`; "eps" is the loss
  of Imagen, "v" that of Imagen Video. `x0` is in [-1, 1].
  """
  check_choice("loss kind", kind, KINDS)
  prediction, truth = _predict(denoiser, x0, eps, log_snr, cond)
  return _squared_error(prediction, truth, kind)


@typechecked
def level_weight(
  weight: str, log_snr: PerSample, kind: str, gamma: float | int
) -> PerSample:
  """The weight of the loss of a kind by noise level.

  It makes the loss a multiple of that of x0, at most `gamma` times it:
  "min_snr" SNR (Min-SNR, Hang et al. 2023: gamma is 5), "v" SNR + 1, the loss
  of v (Progressive Distillation, arXiv 2202.00512, section 4), by which high
  noise levels count for every prediction type. "none" is 1.
  """
  check_choice("loss weight", weight, WEIGHTS)
  check_choice("loss kind", kind, KINDS)
  snr = jnp.exp(log_snr)
  if weight == "none":
    return jnp.ones_like(snr)
  # The loss of each kind, as a multiple of that of x0.
  unit = {"x0": jnp.ones_like(snr), "eps": snr, "v": snr + 1}
  wanted = unit["eps" if weight == "min_snr" else "v"]
  return jnp.minimum(wanted, gamma) / unit[kind]


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

  Gives the mean loss, and {"loss_per_sample", "log_snr"}, each (b,).

  Args:
    denoiser, x0, cond, kind: see `loss_per_sample`.
    draws: see `draw`.
    noise: the distribution of noise levels.
    schedule: gives the neighbouring levels, for a learned variance.
    weight, gamma: of the error by noise level, see `level_weight`.
  """
  log_snr = noise.log_snr(draws.quantile)
  weights = level_weight(weight, log_snr, kind, gamma)
  normal = lambda key: jax.random.normal(key, x0.shape[1:])
  eps = jax.vmap(normal)(draws.keys)
  prediction, truth = _predict(denoiser, x0, eps, log_snr, cond)
  losses = weights * _squared_error(prediction, truth, kind)
  if prediction.log_var is not None:
    losses += variational_bound(prediction, truth, log_snr, schedule)
  return losses.mean(), {"loss_per_sample": losses, "log_snr": log_snr}


def _predict(
  denoiser: Denoiser, x0: Video, eps: Video, log_snr: PerSample, cond: Cond
) -> tuple[Prediction, Prediction]:
  """The prediction for noised videos, and the ground truth."""
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

  This trains the unconditional model of classifier-free guidance (Imagen: rate
  0.1). Frames and noise level are kept.

  "No text" is zeros (Imagen) or the encoding of the empty caption (IF). A mask
  of None: every token is real.
  """
  check_unit("caption dropout rate", rate)
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
  null_text = null_text.astype(cond.text.dtype)
  text = jnp.where(drop[:, None, None], null_text, cond.text)
  mask = None
  if masks := paired_masks(cond.text_mask, null_mask, text):
    mask = jnp.where(drop[:, None], masks[1], masks[0])
  return dataclasses.replace(cond, text=text, text_mask=mask)
