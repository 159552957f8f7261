"""Samplers against the formulas of their papers and diffusers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.diffusion.samplers import (
  DDIM,
  DDPM,
  SAMPLERS,
  DPMSolverPP2M,
  Heun,
  make_sampler,
)
from lumiere_jax.errors import UserError
from tests.diffusion.conftest import scales
from tests.references import samplers

PAIRS = [(-15.0, -9.0), (-2.0, -1.9), (0.5, 3.0), (6.0, 15.0)]


def one_step(sampler, x0, z, pair, noise, log_var=None):
  """One step of `sampler` on numbers."""
  video = lambda x: jnp.full((1, 1, 1, 1, 1), x, jnp.float32)
  if log_var is not None:
    log_var = video(log_var)
  log_snr = jnp.float32(pair[0])[None]
  prediction = predict("x0", video(x0), video(z), log_snr, log_var)
  out = sampler.step(
      prediction, video(z), *map(jnp.float32, pair), video(noise)
  )  # fmt: skip
  return float(out.squeeze())


def bayes(x0, z, pair):
  """Mean and variance of q(z_s | z_t, x0), by integrating Bayes' rule."""
  (alpha_t, sigma_t), (alpha_s, sigma_s) = map(scales, pair)
  # z_t given z_s is Gaussian with what alpha_t^2 + sigma_t^2 = 1 leaves over.
  ratio = alpha_t / alpha_s
  forward = sigma_t**2 - ratio**2 * sigma_s**2
  centre = alpha_s * x0
  zs = centre + sigma_s * np.linspace(-40, 40, 400001)
  log_density = -((z - ratio * zs) ** 2) / (2 * forward)
  log_density -= (zs - centre) ** 2 / (2 * sigma_s**2)
  weight = np.exp(log_density - log_density.max())
  weight /= weight.sum()
  mean = (weight * zs).sum()
  return mean, (weight * (zs - mean) ** 2).sum(), forward


@pytest.mark.parametrize("pair", PAIRS)
def test_ddpm_draws_from_bayes_posterior(pair):
  alpha_t, sigma_t = scales(pair[0])
  x0, z = 0.4, alpha_t * 0.4 + sigma_t * 0.8
  mean, variance, forward = bayes(x0, z, pair)
  got = one_step(DDPM(), x0, z, pair, noise=0.0)
  np.testing.assert_allclose(got, mean, rtol=2e-5, atol=1e-6)
  for gamma in (0.0, 0.3, 1.0):
    std = one_step(DDPM(gamma=gamma), x0, z, pair, noise=1.0) - got
    want = np.sqrt(variance ** (1 - gamma) * forward**gamma)
    np.testing.assert_allclose(std, want, rtol=2e-4)


def test_learned_log_variance_replaces_gamma():
  for place in (0.0, 0.4, 1.0):
    got = one_step(DDPM(), 0.1, 0.9, (-1.0, 1.0), 1.0, log_var=place)
    want = one_step(DDPM(gamma=place), 0.1, 0.9, (-1.0, 1.0), 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_ddim_formula(pair):
  (alpha_t, sigma_t), (alpha_s, sigma_s) = map(scales, pair)
  x0, eps = 0.4, -0.7
  z = alpha_t * x0 + sigma_t * eps
  for eta in (0.0, 0.5, 1.0):
    # Song et al., eq. 16 and 12 with their alpha = alpha^2.
    std = eta * sigma_s / sigma_t * np.sqrt(1 - alpha_t**2 / alpha_s**2)
    want = alpha_s * x0 + np.sqrt(sigma_s**2 - std**2) * eps + std * 1.5
    got = one_step(DDIM(eta=eta), x0, z, pair, noise=1.5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_ddim_of_eta_one_is_ddpm_of_gamma_zero(pair):
  for noise in (0.0, 1.0):
    one = one_step(DDIM(eta=1.0), 0.3, 0.8, pair, noise)
    two = one_step(DDPM(gamma=0.0), 0.3, 0.8, pair, noise)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "sampler", [DDPM(), DDPM(gamma=1.0), DDIM(), DDIM(eta=1.0)], ids=repr
)
def test_the_last_step_returns_x0_without_noise(sampler):
  got = one_step(sampler, 0.37, -2.0, (5.0, np.inf), noise=3.0)
  assert got == np.float32(0.37)
  # A step between two equal levels (a clipped schedule has them) is finite.
  again = one_step(sampler, 0.37, -2.0, (-15.0, -15.0), noise=3.0)
  np.testing.assert_allclose(again, -2.0, rtol=1e-5)


LEVELS = (-15.0, -15.0, -6.0, -1.0, 0.5, 0.7, 4.0, np.inf)
"""Of a whole way down, with two equal levels as a clipped schedule has them."""


def bent(xp, z, log_snr):
  """An x0 that depends on all it is given."""
  return 0.6 * xp.tanh(z - 0.2) + 0.1 * xp.cos(log_snr)


def walk(sampler, z):
  """The states of a sampler on its way down `LEVELS`, from numbers."""

  def denoise(z, log_snr):
    x0 = bent(jnp, z, log_snr)
    return predict("x0", x0, z, jnp.full(z.shape[:1], log_snr))

  state = sampler.init(jnp.asarray(z, jnp.float32).reshape(1, 1, 1, 1, -1))
  advance = jax.jit(lambda *args: sampler.advance(denoise, *args))
  for t, s in itertools.pairwise(LEVELS):
    state = advance(state, jnp.float32(t), jnp.float32(s), state.z)
    yield np.asarray(state.z).ravel()


Z = np.array([-1.5, 0.1, 0.9])


def test_dpmpp_2m_is_algorithm_2_of_its_paper():
  z, before, lambda_r = Z, None, None
  steps = itertools.pairwise(LEVELS)
  for got, (t, s) in zip(walk(DPMSolverPP2M(), Z), steps, strict=True):
    x0 = target = bent(np, z, t)
    if s == np.inf:
      z = x0
    else:
      (_, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
      h = s / 2 - t / 2
      if before is not None and t > lambda_r * 2 and h > 0:
        r = (t / 2 - lambda_r) / h
        target = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
      z = sigma_s / sigma_t * z - alpha_s * np.expm1(-h) * target
    np.testing.assert_allclose(got, z, rtol=1e-5, atol=2e-5)
    before, lambda_r = x0, t / 2
    z = np.float64(got)  # each step by itself


def test_heun_is_algorithm_1_of_edm():
  z = Z
  steps = itertools.pairwise(LEVELS)
  for got, (t, s) in zip(walk(Heun(), Z), steps, strict=True):
    alpha, sigma = scales(t)
    x, noise = z / alpha, sigma / alpha
    slope = (x - bent(np, z, t)) / noise
    if s == np.inf:
      z = x - noise * slope
    else:
      alpha, sigma = scales(s)
      span = sigma / alpha - noise
      euler = x + span * slope
      slope_s = (euler - bent(np, alpha * euler, s)) / (sigma / alpha)
      z = alpha * (x + span * (slope + slope_s) / 2)
    np.testing.assert_allclose(got, z, rtol=1e-5, atol=2e-5)
    z = np.float64(got)


@pytest.mark.parametrize("sampler", [DPMSolverPP2M(), Heun()], ids=repr)
@pytest.mark.parametrize("log_snr", [-15.0, 5.0])
def test_one_step_to_the_clean_video_returns_x0(sampler, log_snr):
  def denoise(z, log_snr):
    assert_finite = jnp.where(jnp.isfinite(log_snr), 0.37, jnp.nan)
    return predict("x0", z * 0 + assert_finite, z, log_snr[None])

  state = sampler.init(jnp.full((1, 1, 1, 1, 1), -2.0))
  for _ in range(2):  # the second one remembers a step
    out = sampler.advance(
        denoise, state, jnp.float32(log_snr), jnp.float32(np.inf), state.z
    )  # fmt: skip
    assert float(out.z.squeeze()) == np.float32(0.37)
    state = sampler.advance(
        denoise, state, jnp.float32(log_snr - 1), jnp.float32(log_snr), state.z
    )  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_from_pure_noise_is_the_limit_of_steps_from_nearly_pure(name):
  """z is the noise, and the mean of the data all that is known of x0."""
  sampler = SAMPLERS[name]()
  z = jnp.full((1, 1, 1, 1, 1), 0.8)

  def denoise(z, log_snr):  # exact for N(0.3, 1): x0 = 0.3 at pure noise
    alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))
    x0 = 0.3 + alpha * (z - 0.3 * alpha)
    return predict("x0", x0, z, log_snr[None])

  step = lambda level: sampler.advance(
    denoise, sampler.init(z), jnp.float32(level), jnp.float32(-3.0), z * 0.5
  )
  pure, nearly = step(-jnp.inf), step(-30.0)
  assert np.isfinite(pure.z).all()
  if name != "heun":
    np.testing.assert_allclose(pure.z, nearly.z, atol=1e-4)
  else:  # Euler's step, which is exact from there
    alpha, sigma = scales(-3.0)
    np.testing.assert_allclose(pure.z, alpha * 0.3 + sigma * 0.8, rtol=1e-5)
  again = sampler.advance(
    denoise, pure, jnp.float32(-3.0), jnp.float32(0.0), z * 0.5
  )
  assert np.isfinite(again.z).all()


def test_samplers_by_name():
  assert make_sampler("ddpm", gamma=0.3) == DDPM(gamma=0.3)
  assert make_sampler("ddim") == DDIM(eta=0.0)
  assert make_sampler("dpmpp_2m") == DPMSolverPP2M()
  assert make_sampler("heun") == Heun()
  assert set(SAMPLERS) == {"ddpm", "ddim", "dpmpp_2m", "heun"}


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("ddmp", {}, 'did you mean "ddpm"'),
    ("heun", {"eta": 1.0}, "unknown key 'eta'"),
    ("ddim", {"eta": 1.5}, "eta=1.5 is not in"),
    ("ddpm", {"gamma": -0.1}, "gamma=-0.1 is not in"),
  ],
)
def test_bad_samplers_are_user_errors(name, options, message):
  with pytest.raises(UserError, match=message):
    make_sampler(name, **options)


@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_step_is_that_of_diffusers(name):
  """Stored in tests/references; `make parity` runs diffusers itself."""
  theirs = np.load(samplers.FOLDER / f"{name}.npy")
  ours = samplers.walk(name)
  assert ours.shape == theirs.shape == (samplers.STEPS, *samplers.SHAPE)
  scale = np.abs(theirs).max((1, 2, 3, 4, 5))
  error = (np.abs(ours - theirs).max((1, 2, 3, 4, 5)) / scale).max()
  print(f"{name}: {error:.1e}")
  assert error < 1e-4


@pytest.mark.parametrize("pair", PAIRS)
def test_ddpm_is_imagens_formula(pair):
  # App. A: mu = e^(lt-ls) (as/at) z + (1 - e^(lt-ls)) as x,
  # var = (1 - e^(lt-ls)) ss^2.
  (alpha_t, _), (alpha_s, sigma_s) = map(scales, pair)
  ratio, x0, z = np.exp(pair[0] - pair[1]), -0.6, 1.3
  mean = ratio * alpha_s / alpha_t * z + (1 - ratio) * alpha_s * x0
  std = np.sqrt(1 - ratio) * sigma_s
  got = [one_step(DDPM(), x0, z, pair, noise) for noise in (0.0, 1.0, -2.0)]
  want = [mean, mean + std, mean - 2 * std]
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
