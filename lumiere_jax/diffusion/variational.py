"""The variational bound, as the loss of a learned log-variance."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from lumiere_jax.diffusion.process import Prediction, expand
from lumiere_jax.diffusion.schedule import Schedule, alpha_sigma
from lumiere_jax.typing import PerSample, Video, typechecked

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
