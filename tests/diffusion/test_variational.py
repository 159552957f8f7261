"""The bound against Gaussians written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lumiere_jax.diffusion.loss import variational_bound
from lumiere_jax.diffusion.prediction import (
  Prediction,
  add_noise,
  predict,
  to_v,
)
from lumiere_jax.diffusion.schedules import Cosine, SquaredCosCapV2

bound = jax.jit(variational_bound, static_argnums=3)
STEPS = np.array([1, 2, 30, 400, 800, 998, 999])


def case(log_snr, error=0.3, seed=0):
  """A truth and a prediction of it with a learned place in the range."""
  rng = np.random.default_rng(seed)
  shape = (len(log_snr), 1, 3, 4, 3)
  x0 = jnp.float32(rng.uniform(-0.9, 0.9, shape))
  eps, wrong = jnp.float32(rng.standard_normal((2, *shape)))
  place = jnp.float32(rng.uniform(-0.2, 1.2, shape))
  truth = Prediction(x0, eps, to_v(x0, eps, log_snr))
  z = add_noise(x0, eps, log_snr)
  return z, truth, predict("eps", eps + error * wrong, z, log_snr, place)


def alphas():
  """The cumulative products of IF's schedule, by its betas."""
  cosine = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  k = np.arange(1000)
  betas = 1 - cosine((k + 1) / 1000) / cosine(k / 1000)
  betas = np.minimum(betas, 0.999)
  return betas, np.cumprod(1 - betas)


def mean_bits(nats):
  return nats.mean(axis=(1, 2, 3, 4)) / np.log(2)


def wide(*arrays):
  """Per-sample numbers and videos, as float64 that broadcast."""
  return [
    x.reshape(-1, 1, 1, 1, 1) if x.ndim == 1 else x
    for x in (np.asarray(a, np.float64) for a in arrays)
  ]


def test_steps_cost_the_divergence_of_two_gaussians():
  """DDPM, eq. 6 and 7, in its betas; the range of Improved DDPM, eq. 15."""
  schedule = SquaredCosCapV2()
  log_snr = schedule.log_snr(jnp.float32(STEPS / 1000))
  z, truth, prediction = case(log_snr)
  got = bound(prediction, truth, log_snr, schedule)
  betas, products = alphas()
  beta, product, before, z, x0, eps, place = wide(
    betas[STEPS], products[STEPS], products[STEPS - 1],
    z, truth.x0, prediction.eps, prediction.log_var,
  )  # fmt: skip
  z = np.sqrt(product) * x0 + np.sqrt(1 - product) * wide(truth.eps)[0]
  predicted = (z - np.sqrt(1 - product) * eps) / np.sqrt(product)
  mean = lambda x0: (
    np.sqrt(before) * beta / (1 - product) * x0
    + np.sqrt(1 - beta) * (1 - before) / (1 - product) * z
  )
  smallest = np.log((1 - before) / (1 - product) * beta)
  log_var = place * np.log(beta) + (1 - place) * smallest
  ratio = np.exp(smallest - log_var)
  distance = np.square(mean(x0) - mean(predicted)) * np.exp(-log_var)
  want = mean_bits((log_var - smallest - 1 + ratio + distance) / 2)
  np.testing.assert_allclose(got, want, rtol=2e-3)


def test_the_last_step_costs_the_likelihood_of_the_pixels():
  """The Gaussian's mass in each pixel's bin (DDPM, eq. 13), in bits."""
  schedule = SquaredCosCapV2()
  log_snr = jnp.repeat(schedule.log_snr(jnp.float32(0.0)), 2)
  _, truth, prediction = case(log_snr)
  pixels = np.round((np.asarray(truth.x0) + 1) * 127.5)
  pixels[0, 0, 0], pixels[1, 0, 1] = 0, 255  # the ends of the range
  x0 = jnp.float32(pixels / 127.5 - 1)
  prediction = prediction.replace(x0=x0 + (prediction.x0 - truth.x0))
  truth = truth.replace(x0=x0)
  got = bound(prediction, truth, log_snr, schedule)
  betas, products = alphas()
  # Its posterior is certain; the smallest variance is the next step's.
  smallest = np.log((1 - products[0]) / (1 - products[1]) * betas[1])
  mean, place = wide(prediction.x0, prediction.log_var)
  std = np.exp((place * np.log(betas[0]) + (1 - place) * smallest) / 2)
  lower = np.where(pixels == 0, -np.inf, (pixels - 0.5) / 127.5 - 1)
  upper = np.where(pixels == 255, np.inf, (pixels + 0.5) / 127.5 - 1)
  mass = stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std)
  np.testing.assert_allclose(got, mean_bits(-np.log(mass)), rtol=2e-3)


@pytest.mark.parametrize("schedule", [Cosine(), SquaredCosCapV2()], ids=repr)
def test_gradients_are_finite_and_move_the_variance_alone(schedule):
  t = jnp.array([0.0, 0.0005, 0.001, 0.002, 0.5, 0.999, 1.0])
  log_snr = schedule.log_snr(t)
  _, truth, prediction = case(log_snr, error=2.0)
  loss = lambda p: variational_bound(p, truth, log_snr, schedule).sum()
  value, gradient = jax.jit(jax.value_and_grad(loss))(prediction)
  assert np.isfinite(value)
  for form in ("x0", "eps", "v"):
    np.testing.assert_array_equal(getattr(gradient, form), 0)
  assert np.all(np.isfinite(gradient.log_var))


def test_the_variance_that_fits_the_error_costs_least():
  """Where eps is off by e, log-variances learn posterior plus error."""
  schedule = SquaredCosCapV2()
  log_snr = schedule.log_snr(jnp.float32(np.array([0.01, 0.3])))
  _, truth, prediction = case(log_snr, error=0.5)
  cost = lambda place: variational_bound(
    prediction.replace(log_var=jnp.full_like(truth.x0, place)),
    truth, log_snr, schedule,
  )  # fmt: skip
  places = np.linspace(-1, 40, 411)
  costs = np.array(jax.jit(jax.vmap(cost))(jnp.float32(places)))
  best = places[costs.argmin(axis=0)]
  betas, products = alphas()
  k = np.array([10, 300])
  posterior = (1 - products[k - 1]) / (1 - products[k]) * betas[k]
  shift = betas[k] / np.sqrt((1 - products[k]) * (1 - betas[k]))
  error = np.square(prediction.eps - truth.eps).mean(axis=(1, 2, 3, 4))
  fit = np.log((posterior + shift**2 * error) / posterior)
  want = fit / np.log(betas[k] / posterior)
  np.testing.assert_allclose(best, want, atol=0.11)
