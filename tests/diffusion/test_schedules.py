import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.schedules import (
  SCHEDULES,
  Cosine,
  EvenLogSNR,
  Linear,
  Schedule,
  SquaredCosCapV2,
  alpha_sigma,
  make_schedule,
)
from lumiere_jax.errors import UserError

CONTINUOUS = [
  Cosine(),
  Cosine(shift=-2.77),
  Cosine(shift=1.0),
  Linear(),
  Linear(shift=-1.5),
  EvenLogSNR(),
]

DISCRETE = [SquaredCosCapV2(), SquaredCosCapV2(shift=-2.77)]
ALL = CONTINUOUS + DISCRETE
STEPS = np.arange(1000)


def cosine(t, shift=0.0):
  """log-SNR of alpha = cos(pi t / 2), in float64."""
  t = np.asarray(t, np.float64)
  alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
  return np.log(alpha**2 / sigma**2) + shift


def test_cosine_is_the_cosine():
  t = np.linspace(0.01, 0.99, 99)
  for shift in (0.0, -2.77):
    got = Cosine(shift=shift).log_snr(jnp.float32(t))
    np.testing.assert_allclose(got, cosine(t, shift), rtol=1e-5, atol=2e-5)
  alpha, _ = alpha_sigma(Cosine().log_snr(jnp.float32(t)))
  np.testing.assert_allclose(alpha, np.cos(np.pi * t / 2), rtol=1e-5)


def test_linear_is_ddpms_linear_beta():
  # sigma^2 = 1 - exp(-integral of beta), beta(t) = 20 t: d(10 t^2)/dt.
  t = np.linspace(0, 1, 11)
  integral = 1e-4 + np.array([np.trapezoid([0, 20 * u], [0, u]) for u in t])
  sigma2 = 1 - np.exp(-integral)
  want = np.log((1 - sigma2) / sigma2)
  got = Linear().log_snr(jnp.float32(t))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)
  got = Linear(shift=-1.5).log_snr(jnp.float32(t))
  np.testing.assert_allclose(got, want - 1.5, rtol=1e-5, atol=2e-6)


def test_squaredcos_cap_v2_is_ifs_product_of_capped_betas():
  """Step by step, as its definition says."""
  cosine = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  alpha2, want = 1.0, []
  for k in STEPS:
    beta = min(1 - cosine((k + 1) / 1000) / cosine(k / 1000), 0.999)
    alpha2 *= 1 - beta
    want.append(np.log(alpha2 / (1 - alpha2)))
  got = SquaredCosCapV2().log_snr(jnp.float32(STEPS / 1000))
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  # The first and the last alpha^2, as diffusers prints them.
  assert abs(1 / (1 + np.exp(-np.float64(got[0]))) - 0.9999587) < 1e-7
  assert abs(np.exp(np.float64(got[-1])) / 2.4288e-9 - 1) < 1e-3
  shifted = SquaredCosCapV2(shift=-1.0).log_snr(jnp.float32(STEPS / 1000))
  clipped = np.maximum(np.array(want) - 1.0, -20.0)
  np.testing.assert_allclose(shifted, clipped, rtol=1e-6, atol=1e-6)


def test_times_of_discrete_steps():
  schedule = SquaredCosCapV2()
  times = jnp.float32(STEPS / 1000)
  table = schedule.log_snr(times)
  np.testing.assert_array_equal(schedule.time(table), times)
  np.testing.assert_array_equal(schedule.log_snr(schedule.time(table)), table)
  # Between steps: the nearest level's time, and beyond the ends the end's.
  assert float(schedule.time(0.6 * table[300] + 0.4 * table[301])) == times[300]
  assert float(schedule.time(0.4 * table[300] + 0.6 * table[301])) == times[301]
  ends = schedule.time(jnp.array([np.inf, 30.0, -30.0]))
  np.testing.assert_array_equal(ends, times[jnp.array([0, 0, 999])])
  # t ~ U(0, 1) is a uniform draw of steps.
  t = (jnp.arange(100_000) + 0.5) / 100_000
  drawn, counts = np.unique(schedule.log_snr(t), return_counts=True)
  np.testing.assert_array_equal(drawn, table[::-1])
  assert counts[1:-1].min() == counts[1:-1].max() == 100
  assert np.abs(counts - 100).max() <= 1


def test_grids():
  for schedule in CONTINUOUS:
    even = schedule.log_snr(jnp.array([1, 0.75, 0.5, 0.25]))
    np.testing.assert_array_equal(schedule.trailing(4), even)
    start = -15.0 if isinstance(schedule, Cosine) else even[0]
    np.testing.assert_array_equal(schedule.grid(4)[1:], even[1:])
    assert schedule.grid(4)[0] == start


def test_grid_of_the_discrete_schedule_is_ifs():
  schedule = SquaredCosCapV2()
  for steps, first in ((1, 0), (7, 852), (100, 990), (1000, 999)):
    numbers = first - first // max(steps - 1, 1) * np.arange(steps)
    want = schedule.log_snr(jnp.float32(numbers / 1000))
    np.testing.assert_array_equal(schedule.grid(steps), want)
  for grid in (schedule.grid, schedule.trailing):
    with pytest.raises(UserError, match="steps=1001 is more than the 1000"):
      grid(1001)


def test_even_log_snr_is_a_line():
  t = np.linspace(0, 1, 11)
  got = EvenLogSNR(shift=1.5).log_snr(jnp.float32(t))
  np.testing.assert_allclose(got, 21.5 - 40 * t, rtol=1e-6)
  ends = EvenLogSNR().time(jnp.array([np.inf, 30.0, -30.0, -np.inf]))
  np.testing.assert_array_equal(ends, [0, 0, 1, 1])


def test_shift_is_the_noise_of_a_larger_picture():
  # Averaging n x n pixels divides the noise variance by n^2: at 4 x the base
  # resolution the shifted schedule seen at the base size is the plain one.
  t = jnp.linspace(0.05, 0.95, 7)
  shifted = Cosine(shift=2 * np.log(64 / 256)).log_snr(t)
  alpha, sigma = alpha_sigma(shifted)
  seen = np.log(alpha**2 / (sigma**2 / 16))
  np.testing.assert_allclose(seen, Cosine().log_snr(t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_log_snr_is_finite_and_falls_with_time(schedule):
  t = jnp.linspace(0.0, 1.0, 10001)
  log_snr = np.asarray(schedule.log_snr(t))
  assert isinstance(schedule, Schedule)
  assert log_snr.dtype == np.float32
  assert np.all(np.isfinite(log_snr))
  assert np.all(np.diff(log_snr) <= 0)
  assert np.all(np.abs(log_snr) <= 20)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=repr)
def test_time_inverts_log_snr(schedule):
  t = jnp.linspace(0.01, 0.99, 397)
  np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, atol=2e-6)
  log_snr = jnp.linspace(-9.9, 9.1, 301) + schedule.shift
  back = schedule.log_snr(schedule.time(log_snr))
  np.testing.assert_allclose(back, log_snr, atol=2e-3)


def test_clip_holds_the_ends_and_only_them():
  schedule = Cosine(shift=1.0)
  ends = schedule.log_snr(jnp.array([0.0, 1e-6, 1.0]))
  np.testing.assert_array_equal(ends, [20.0, 20.0, -20.0])
  times = schedule.time(jnp.array([20.0, -20.0]))
  np.testing.assert_allclose(cosine(times, 1.0), [20.0, -20.0], rtol=1e-3)


def test_linear_time_beyond_its_range_is_an_end():
  times = Linear().time(jnp.array([20.0, -20.0]))
  np.testing.assert_array_equal(times, [0.0, 1.0])


def test_alpha_sigma_keeps_relative_precision():
  log_snr = np.linspace(-20, 20, 401).astype(np.float32)
  alpha, sigma = alpha_sigma(jnp.asarray(log_snr))
  exact = log_snr.astype(np.float64)
  np.testing.assert_allclose(alpha, (1 + np.exp(-exact)) ** -0.5, rtol=1e-6)
  np.testing.assert_allclose(sigma, (1 + np.exp(exact)) ** -0.5, rtol=1e-6)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
  np.testing.assert_allclose(
    np.log(np.square(alpha, dtype=np.float64))
    - np.log(np.square(sigma, dtype=np.float64)),
    exact,
    atol=2e-6,
  )


def test_infinite_log_snr_is_clean():
  assert tuple(map(float, alpha_sigma(jnp.float32(np.inf)))) == (1.0, 0.0)
  assert tuple(map(float, alpha_sigma(jnp.float32(-np.inf)))) == (0.0, 1.0)


def test_schedules_by_name():
  assert make_schedule("cosine", shift=-1.0) == Cosine(shift=-1.0)
  assert make_schedule("linear") == Linear()
  assert make_schedule("squaredcos_cap_v2", shift=1.0).shift == 1.0
  assert set(SCHEDULES) == {"cosine", "linear", "squaredcos_cap_v2", "log_snr"}
  for schedule in ALL:  # jit keys on them
    assert hash(schedule) == hash(schedule)
  jitted = jax.jit(lambda t: Cosine().log_snr(t))
  np.testing.assert_allclose(jitted(0.3), cosine(0.3), rtol=1e-5)


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("cosin", {}, 'did you mean "cosine"'),
    ("cosine", {"shfit": 1.0}, 'did you mean "shift"'),
  ],
)
def test_bad_schedules_are_user_errors(name, options, message):
  with pytest.raises(UserError, match=message) as error:
    make_schedule(name, **options)
  assert "\n" not in str(error.value)
