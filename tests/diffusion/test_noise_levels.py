"""Training distributions, sampling grids, held-out levels."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion import noise_levels
from lumiere_jax.diffusion.noise_levels import (
  GRIDS,
  as_distribution,
  auto_shift,
  decisive_log_snr,
  evaluation_bins,
  noisiest,
  parse_levels,
  sampling_levels,
)
from lumiere_jax.diffusion.schedules import Cosine, SquaredCosCapV2
from lumiere_jax.errors import UserError

QUANTILES = (np.arange(4000) + 0.5) / 4000

OPTIONS = {
  "schedule": Cosine(),
  "mean": 0.0,
  "std": 1.0,
  "shift": 0.0,
  "low": -10.0,
  "high": 10.0,
}


def drawn(name, **changes):
  noise = as_distribution(name, **(OPTIONS | changes))
  return np.asarray(noise.log_snr(jnp.float32(QUANTILES)), np.float64)


def test_uniform_in_schedule_time():
  np.testing.assert_allclose(
    drawn("schedule"), -2 * np.log(np.tan(np.pi / 2 * QUANTILES)), atol=2e-3
  )
  table = np.unique(
    np.asarray(SquaredCosCapV2().log_snr(jnp.arange(1000) / 1000))
  )
  got = np.unique(drawn("schedule", schedule=SquaredCosCapV2()))
  np.testing.assert_allclose(got, table, atol=1e-5)


def test_logit_normal_is_sd3s():
  """t = sigmoid(m + s n) on the straight path (1 - t) x0 + t eps."""
  rng = np.random.default_rng(0)
  t = 1 / (1 + np.exp(-(0.5 + 1.5 * rng.standard_normal(400_000))))
  want = np.quantile(np.log(((1 - t) / t) ** 2), [0.1, 0.5, 0.9])
  got = np.quantile(drawn("logit_normal", mean=0.5, std=1.5), [0.1, 0.5, 0.9])
  np.testing.assert_allclose(got, want, atol=0.03)


def test_normal_is_edms():
  """log sigma ~ N(P_mean, P_std^2) of noise added to data as it is."""
  rng = np.random.default_rng(0)
  sigma = np.exp(-1.2 + 1.2 * rng.standard_normal(400_000))
  want = np.quantile(np.log(1 / sigma**2), [0.1, 0.5, 0.9])
  got = np.quantile(drawn("normal", mean=-1.2, std=1.2), [0.1, 0.5, 0.9])
  np.testing.assert_allclose(got, want, atol=0.03)


def test_uniform():
  got = drawn("uniform", low=-8.0, high=4.0)
  np.testing.assert_allclose(got, 4 - 12 * QUANTILES, atol=1e-5)


@pytest.mark.parametrize("name", noise_levels.DISTRIBUTIONS)
def test_every_distribution_shifts_and_stays_finite(name):
  got, plain = drawn(name, shift=-3.0), drawn(name)
  assert np.all(np.diff(plain) <= 0)  # the clean ones first
  np.testing.assert_allclose(got, np.maximum(plain - 3, -20), atol=1e-5)
  noise = as_distribution(name, **(OPTIONS | {"shift": -30.0}))
  ends = noise.log_snr(jnp.float32([0.0, 1 - 1e-7]))
  assert np.all(np.abs(ends) <= noise_levels.LIMIT)


def test_unknown_distribution():
  with pytest.raises(UserError, match='did you mean "uniform"'):
    as_distribution("unifrom", **OPTIONS)


def test_auto_shift_keeps_the_noise_of_the_mean():
  """80 frames of 4 times the pixels: 320 times as many to average over."""
  shift = auto_shift(80, 128 * 128, (1, 64 * 64, 0.0))
  assert shift == pytest.approx(-math.log(320))
  assert auto_shift(80, 128 * 128, (80, 128 * 128, shift)) == shift
  assert auto_shift(1, 64 * 64, None) == 0
  assert auto_shift(1, 256 * 256, None) == pytest.approx(2 * math.log(64 / 256))
  # In the noised mean of all pixels: its log-SNR is that of the parent's.
  rng = np.random.default_rng(0)
  for count, level in ((64, 0.0), (64 * 20, auto_shift(20, 64, (1, 64, 0.0)))):
    alpha, sigma = (1 / math.sqrt(1 + math.exp(s * level)) for s in (-1, 1))
    means = sigma * rng.standard_normal((20_000, count)).mean(axis=1)
    assert alpha**2 / means.var() == pytest.approx(64, rel=0.05)


def test_where_frames_agree():
  assert decisive_log_snr(80, 128 * 128) == pytest.approx(-14.09, abs=0.01)


def test_noisiest_reaches_ifs_last_step():
  noise = as_distribution(
    "schedule", **(OPTIONS | {"schedule": SquaredCosCapV2()})
  )
  assert noisiest(noise) == float(SquaredCosCapV2().log_snr(jnp.float32(0.999)))


@pytest.mark.parametrize("name", noise_levels.DISTRIBUTIONS)
def test_evaluation_bins_add_up_to_the_training_loss(name):
  noise = as_distribution(name, **(OPTIONS | {"shift": -2.0}))
  edges = evaluation_bins(noise, 5)
  assert (edges[0], edges[-1]) == (0, 1) and np.all(np.diff(edges) > 0)
  values = drawn(name, shift=-2.0)
  # Inner edges are evenly spread between the ends of training.
  inner = np.asarray(noise.log_snr(jnp.float32(edges[1:-1])))
  ends = np.quantile(values, [0.999, 0.001])
  np.testing.assert_allclose(inner, np.linspace(*ends, 6)[1:-1], atol=0.3)
  loss = lambda x: 1 / (1 + np.exp(-np.float64(x))) + 0.1 * np.sin(x)
  places = (np.arange(64) + 0.5) / 64
  found = 0.0
  for low, high in itertools.pairwise(edges):
    levels = noise.log_snr(jnp.float32(low + (high - low) * places))
    found += (high - low) * loss(levels).mean()
  assert found == pytest.approx(loss(values).mean(), abs=0.003)
  assert values.min() == pytest.approx(float(levels.min()), abs=1.0)


def test_evaluation_bins_are_found_while_a_program_is_traced():
  noise = as_distribution("schedule", **OPTIONS)
  inside = jax.jit(lambda: jnp.asarray(evaluation_bins(noise, 4)))()
  np.testing.assert_allclose(inside, evaluation_bins(noise, 4), rtol=1e-6)


def levels(grid, steps, **changes):
  options = {"schedule": Cosine(), "start": -np.inf, "low": -12.0, "high": 5.0}
  return sampling_levels(grid, steps, **(options | changes))


def test_even_in_log_snr():
  got = levels("log_snr", 12)
  want = [-np.inf, *np.linspace(-12, 5, 11), np.inf]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # A network that knows less starts at what it knows.
  got = levels("log_snr", 12, start=-10.0)
  np.testing.assert_allclose(got[:-1], np.linspace(-10, 5, 12), rtol=1e-6)
  np.testing.assert_array_equal(levels("log_snr", 1), [-np.inf, np.inf])
  np.testing.assert_array_equal(levels("log_snr", 2), [-np.inf, -3.5, np.inf])
  np.testing.assert_allclose(levels("log_snr", 5, shift=-2)[1], -14, rtol=1e-6)


def test_karras_is_edms_equation_5():
  got = levels("karras", 9)
  sigma_max, sigma_min = np.exp(6.0), np.exp(-2.5)
  i = np.arange(8) / 7
  sigma = (
    sigma_max ** (1 / 7) + i * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))
  ) ** 7
  np.testing.assert_allclose(got[1:-1], -2 * np.log(sigma), rtol=1e-5)


def test_trailing_ends_where_an_even_step_would_reach_the_clean_video():
  got = levels("trailing", 4)
  want = Cosine().log_snr(jnp.float32([0.75, 0.5, 0.25]))
  np.testing.assert_allclose(got, [-np.inf, *want, np.inf], rtol=1e-6)
  got = levels("trailing", 4, shift=-1.0, start=-11.0)
  np.testing.assert_allclose(got, [-11.0, *(want - 1), np.inf], rtol=1e-5)


def test_list_below_the_noisiest_trained_level():
  with pytest.raises(UserError, match="this model is log-SNR -9"):
    levels("-inf,-12,-4", 3, start=-9.0)
  np.testing.assert_array_equal(levels("-12,-4", 2, start=-9.0)[:2], [-12, -4])


@pytest.mark.parametrize("grid", [*GRIDS, "-inf,-8,-4,0,4"])
@pytest.mark.parametrize("schedule", [Cosine(), SquaredCosCapV2()], ids=repr)
def test_grids_increase_from_the_noisiest_trained_level(grid, schedule):
  """Of a network that knows levels from -9.2 on, as one that predicts eps."""
  for shift in (0.0, -5.0):
    got = levels(grid, 5, start=-9.2, shift=shift, schedule=schedule)
    assert np.all(np.diff(got) >= 0)
    if grid != "schedule":
      assert got[0] == np.float32(-9.2)


def test_schedule_grid_of_format_1():
  got = levels("schedule", 4)
  want = Cosine().log_snr(jnp.float32([0.75, 0.5, 0.25]))
  np.testing.assert_array_equal(got, [-15.0, *want, np.inf])


def test_counts_that_would_start_late_use_trailing():
  schedule = SquaredCosCapV2()
  noisiest = float(schedule.log_snr(jnp.float32(0.999)))
  for steps in (1, 4, 7, 150, 300, 600, 900):
    grid = levels("schedule", steps, schedule=schedule)[:-1]
    assert grid[0] == noisiest
    numbers = np.round(1000 * (1 - np.arange(steps) / steps)) - 1
    want = schedule.log_snr(jnp.float32(numbers / 1000))
    np.testing.assert_array_equal(grid, want)
  # diffusers' "trailing" of 4 steps: 999, 749, 499, 249.
  want = schedule.log_snr(jnp.float32([0.999, 0.749, 0.499, 0.249]))
  np.testing.assert_array_equal(schedule.trailing(4), want)


def test_other_counts_use_the_grid_of_if():
  schedule = SquaredCosCapV2()
  for steps in (10, 20, 27, 50, 100, 500, 1000):
    got = levels("schedule", steps, schedule=schedule)[:-1]
    np.testing.assert_array_equal(got, schedule.grid(steps))


def test_list_grid():
  got = levels("-inf,-8,-4,0,4", 5)
  np.testing.assert_array_equal(got, [-np.inf, -8, -4, 0, 4, np.inf])
  assert parse_levels("log_snr") is None


@pytest.mark.parametrize(
  ("grid", "words"),
  [
    ("log-snr", 'did you mean "log_snr"'),
    ("4,0,-4", "log-SNRs must increase"),
    ("-4,nan", "log-SNRs must increase"),
    ("-4,inf", "log-SNRs must increase"),
    ("-4,0,4", "the grid has 3 levels, but steps=2; omit"),
  ],
)
def test_bad_grids_are_user_errors(grid, words):
  with pytest.raises(UserError, match=words) as error:
    levels(grid, 2)
  assert "\n" not in str(error.value)


def test_ends_that_do_not_fit_are_a_user_error():
  with pytest.raises(UserError, match="from log-SNR 6 to 5; set log_snr_min"):
    levels("log_snr", 4, low=6.0)
  with pytest.raises(UserError, match="from log-SNR -10 to -11"):
    levels("log_snr", 4, start=-10.0, low=-12.0, high=-11.0)
  for grid in GRIDS:
    with pytest.raises(UserError, match="steps=0"):
      levels(grid, 0)
