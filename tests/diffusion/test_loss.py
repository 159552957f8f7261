"""Losses, and the variational bound against Gaussians in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lumiere_jax.diffusion.loss import (
  Draws,
  diffusion_loss,
  draw,
  drop_captions,
  level_weight,
  loss_per_sample,
  stratified,
  variational_bound,
)
from lumiere_jax.diffusion.prediction import (
  KINDS,
  Prediction,
  add_noise,
  expand,
  predict,
  to_v,
)
from lumiere_jax.diffusion.schedules import Cosine, SquaredCosCapV2
from lumiere_jax.errors import UserError
from lumiere_jax.typing import Cond
from tests.diffusion.conftest import scales

SHAPE = (3, 2, 4, 4, 3)
COSINE = dict.fromkeys(("noise", "schedule"), Cosine())
DISCRETE = dict.fromkeys(("noise", "schedule"), SquaredCosCapV2())

KEYS = jax.random.split(jax.random.key(0), 2000)


def constant(kind, value):
  """A denoiser whose network says `value` everywhere, as `kind`."""
  return lambda z, log_snr, cond: predict(
    kind, jnp.full_like(z, value), z, log_snr
  )


def by_hand(kind, x0, eps, log_snr, value):
  """mean (truth - value)^2 per sample, in float64."""
  x0, eps, log_snr = wide(x0, eps, log_snr)
  alpha, sigma = scales(log_snr)
  truth = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[kind]
  return np.square(truth - value).mean(axis=(1, 2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_squared_error_of_its_kind(kind, cond):
  rng = np.random.default_rng(0)
  x0, eps = jnp.float32(rng.standard_normal((2, *SHAPE)))
  log_snr = jnp.array([-5.0, 0.0, 5.0])
  got = loss_per_sample(constant(kind, 0.3), x0, eps, log_snr, cond(3), kind)
  want = by_hand(kind, x0, eps, log_snr, 0.3)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-5)


def entangled(z, log_snr, cond):
  """A network whose answer to each sample depends on all it is told of it."""
  told = log_snr + cond.text.mean(axis=(1, 2))
  return predict("v", jnp.tanh(z + expand(told)), z, log_snr)


def test_diffusion_loss_draws_times_and_noise(cond):
  x0 = jax.random.normal(jax.random.key(5), (512, 1, 4, 4, 1))
  run = jax.jit(
    lambda key: diffusion_loss(
      constant("eps", 0.0), x0, cond(512), draw(key, 512), **COSINE
    )
  )
  loss, metrics = run(jax.random.key(0))
  losses, log_snr = metrics["loss_per_sample"], metrics["log_snr"]
  # The network says 0, so each loss is the mean of 16 squared normals.
  np.testing.assert_allclose(loss, losses.mean(), rtol=1e-6)
  assert abs(float(loss) - 1) < 4 * np.sqrt(2 / (512 * 16))
  assert losses.std() > 0.2  # every sample has noise of its own
  t = np.asarray(Cosine().time(log_snr))
  np.testing.assert_array_equal(np.sort(np.floor(t * 512)), np.arange(512))
  other, _ = run(jax.random.key(1))
  assert float(other) != float(loss)


def test_micro_batches_add_up_to_the_batch(cond):
  """Slices of the draws go with slices of the batch, bit for bit."""
  x0 = jax.random.normal(jax.random.key(5), (8, 1, 2, 2, 1))
  full, draws = cond(8), draw(jax.random.key(0), 8)
  run = jax.jit(
    lambda *args: diffusion_loss(
      entangled, *args, **COSINE, kind="v", weight="min_snr"
    )
  )
  loss, metrics = run(x0, full, draws)
  parts = []
  for i in range(4):
    cut = lambda x, i=i: x[2 * i : 2 * i + 2]
    part, other = run(*jax.tree.map(cut, (x0, full, draws)))
    parts.append(part)
    np.testing.assert_array_equal(other["log_snr"], cut(metrics["log_snr"]))
    np.testing.assert_allclose(
      other["loss_per_sample"], cut(metrics["loss_per_sample"]), rtol=1e-5
    )
  np.testing.assert_allclose(np.mean(parts), loss, rtol=1e-5)
  assert np.ptp(parts) > 0.01


def test_draws_depend_on_the_index_only():
  long, short = draw(jax.random.key(0), 16), draw(jax.random.key(0), 8)
  np.testing.assert_array_equal(
    jax.random.key_data(long.keys[:8]), jax.random.key_data(short.keys)
  )
  assert len(np.unique(jax.random.key_data(long.keys), axis=0)) == 16
  np.testing.assert_array_equal(
    np.sort(np.floor(long.quantile * 16)), np.arange(16)
  )


def test_min_snr_weights(cond):
  """Whatever the space of the error: min(SNR, gamma) |x0 error|^2."""
  x0 = jax.random.normal(jax.random.key(5), (5, 1, 2, 2, 1))
  draws = Draws(jnp.array([0.02, 0.2, 0.5, 0.8, 0.98]), KEYS[:5])
  text = cond(5)

  @jax.jit
  def run():
    loss = lambda kind, **options: diffusion_loss(
      entangled, x0, text, draws, **COSINE, kind=kind, **options
    )[1]
    weighted = {k: loss(k, weight="min_snr", gamma=2.0) for k in KINDS}
    return loss("x0"), weighted

  plain, weighted = run()
  snr = np.exp(np.float64(plain["log_snr"]))
  assert snr.min() < 2 < snr.max()
  want = np.minimum(snr, 2.0) * plain["loss_per_sample"]
  # Each kind's weight, as the paper gives it.
  weights = {
    "x0": np.minimum(snr, 5),
    "eps": np.minimum(snr, 5) / snr,
    "v": np.minimum(snr, 5) / (snr + 1),
  }
  for kind in KINDS:
    got = weighted[kind]["loss_per_sample"]
    np.testing.assert_allclose(got, want, rtol=2e-3)
    weight = level_weight("min_snr", plain["log_snr"], kind, 5.0)
    np.testing.assert_allclose(weight, weights[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_v_weighting_gives_the_loss_of_v(cond, kind):
  x0 = jax.random.normal(jax.random.key(5), (4, 1, 2, 2, 3)).clip(-1, 1)
  draws = Draws(jnp.array([0.1, 0.4, 0.7, 0.95]), KEYS[:4])
  network = lambda z, log_snr, cond: predict("v", 0.3 * z, z, log_snr)
  loss = lambda kind, **how: diffusion_loss(
    network, x0, cond(4), draws, kind=kind, **COSINE, **how
  )[1]["loss_per_sample"]
  weighed = loss(kind, weight="v", gamma=1e9)
  np.testing.assert_allclose(weighed, loss("v"), rtol=1e-3)
  # And no more of x0 than gamma, where there is little noise.
  capped = loss(kind, weight="v", gamma=2.0)
  np.testing.assert_allclose(capped[0], 2 * loss("x0")[0], rtol=1e-3)
  np.testing.assert_allclose(capped[-1], loss("v")[-1], rtol=1e-3)


def test_only_the_bound_trains_the_variance(cond):
  """The hybrid loss: neither term's gradient reaches the other's output."""
  x0 = jax.random.normal(jax.random.key(5), (4, 1, 2, 2, 3)).clip(-1, 1)
  draws = Draws(jnp.array([0.0, 0.001, 0.01, 0.1]), KEYS[:4])

  def loss(eps, place, with_variance):
    def network(z, log_snr, cond):
      log_var = jnp.full_like(z, place) if with_variance else None
      return predict("eps", jnp.full_like(z, eps), z, log_snr, log_var)

    return diffusion_loss(network, x0, cond(4), draws, **DISCRETE)[0]

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
  hybrid, plain = gradient(0.3, 0.4, True), gradient(0.3, 0.4, False)
  np.testing.assert_allclose(hybrid[0], plain[0], rtol=1e-6)
  assert plain[1] == 0
  assert np.isfinite(hybrid[1]) and abs(hybrid[1]) > 0.01


def test_stratified_times_fill_every_stratum_and_stay_uniform():
  t = np.asarray(stratified(jax.random.key(0), 64))
  assert t.min() >= 0 and t.max() < 1
  np.testing.assert_array_equal(np.sort(np.floor(t * 64)), np.arange(64))
  keys = jax.random.split(jax.random.key(1), 2000)
  first = jax.vmap(lambda key: stratified(key, 4)[0])(keys)
  assert abs(float(first.mean()) - 0.5) < 4 / np.sqrt(12 * 2000)
  assert float(first.max()) > 0.99


def test_unknown_loss(cond):
  x0 = jnp.zeros((1, 1, 1, 1, 1))
  for options, words in (
    ({"kind": "mse"}, "loss kind='mse' is not one of eps, v, x0"),
    ({"weight": "snr"}, "weight='snr' is not one of .*mean \"min_snr\""),
  ):
    with pytest.raises(UserError, match=words):
      diffusion_loss(
          constant("eps", 0.0), x0, cond(1), draw(jax.random.key(0), 1),
          **COSINE, **options,
      )  # fmt: skip


@pytest.fixture
def captions():
  batch = 2000
  text = 1 + jax.random.uniform(jax.random.key(0), (batch, 3, 2))
  mask = jnp.ones((batch, 3), bool)
  frames = jax.random.normal(jax.random.key(1), (batch, 1, 1, 1, 1))
  return Cond(text, mask, frames, jnp.arange(batch, dtype=jnp.float32))


def test_dropped_captions_are_exactly_the_null_text(captions):
  null_text = jax.random.normal(jax.random.key(9), (3, 2))
  null_mask = jnp.array([True, False, False])
  keys = jax.random.split(jax.random.key(2), 2000)
  drop = jax.jit(drop_captions, static_argnums=4)
  out = drop(keys, captions, null_text, null_mask, 0.1)
  kept = np.all(np.asarray(out.text) == np.asarray(captions.text), axis=(1, 2))
  null = np.all(np.asarray(out.text) == np.asarray(null_text), axis=(1, 2))
  assert np.all(kept ^ null)
  assert abs(null.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 2000)
  np.testing.assert_array_equal(out.text_mask[null][:, 1:], False)
  np.testing.assert_array_equal(out.text_mask[kept], True)
  np.testing.assert_array_equal(out.frames, captions.frames)
  np.testing.assert_array_equal(out.noise_level, captions.noise_level)
  # A part of the batch loses the same captions.
  part = drop(keys[:64], jax.tree.map(lambda x: x[:64], captions), null_text,
              null_mask, 0.1)  # fmt: skip
  np.testing.assert_array_equal(part.text, out.text[:64])


def test_drop_rates_zero_and_one(captions):
  drop = lambda rate: drop_captions(
    KEYS, captions, jnp.zeros((3, 2)), None, rate
  )
  np.testing.assert_array_equal(drop(0.0).text, captions.text)
  np.testing.assert_array_equal(drop(1.0).text, 0)
  with pytest.raises(UserError, match="rate=10"):
    drop(10.0)


def test_missing_masks_are_all_ones(captions):
  null = jnp.zeros((3, 2))
  plain = captions.replace(text_mask=None)
  assert drop_captions(KEYS, plain, null, None, 1.0).text_mask is None
  null_mask = jnp.array([True, False, False])
  out = drop_captions(KEYS, plain, null, null_mask, 0.5)
  null = np.all(np.asarray(out.text) == 0, axis=(1, 2))
  np.testing.assert_array_equal(out.text_mask[:, 1], ~null)
  masked = captions.replace(text_mask=jnp.zeros((2000, 3), bool))
  out = drop_captions(KEYS, masked, jnp.zeros((3, 2)), None, 0.5)
  null = np.all(np.asarray(out.text) == 0, axis=(1, 2))
  np.testing.assert_array_equal(out.text_mask[:, 1], null)


# The variational bound.

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
def test_bound_has_finite_gradients_of_the_variance_only(schedule):
  t = jnp.array([0.0, 0.0005, 0.001, 0.002, 0.5, 0.999, 1.0])
  log_snr = schedule.log_snr(t)
  _, truth, prediction = case(log_snr, error=2.0)
  loss = lambda p: variational_bound(p, truth, log_snr, schedule).sum()
  value, gradient = jax.jit(jax.value_and_grad(loss))(prediction)
  assert np.isfinite(value)
  for form in ("x0", "eps", "v"):
    np.testing.assert_array_equal(getattr(gradient, form), 0)
  assert np.all(np.isfinite(gradient.log_var))


def test_eps_loss_in_other_forms_is_reweighted(cond):
  # |x0 error| = sigma/alpha |eps error| and |v error| = |eps error| / alpha.
  rng = np.random.default_rng(1)
  x0, eps = jnp.float32(rng.standard_normal((2, *SHAPE)))
  log_snr = jnp.array([-2.0, 0.0, 2.0])
  loss = lambda kind: loss_per_sample(
    constant("eps", 0.1), x0, eps, log_snr, cond(3), kind
  )
  snr = np.exp(log_snr)
  np.testing.assert_allclose(loss("x0"), loss("eps") / snr, rtol=1e-4)
  np.testing.assert_allclose(loss("v"), loss("eps") * (1 + 1 / snr), rtol=1e-4)


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
