import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import guide, threshold
from lumiere_jax.diffusion.multidiffusion import multi_diffusion, window_starts
from lumiere_jax.diffusion.noise import INITIAL, frame_noise, sample_keys
from lumiere_jax.diffusion.process import Prediction, predict
from lumiere_jax.diffusion.samplers import (
  DDIM,
  DDPM,
  State,
  sample,
  sample_chunk,
  time_grid,
)
from lumiere_jax.diffusion.schedule import Cosine, Linear
from lumiere_jax.typing import UserError


def scales(log_snr):
  """alpha, sigma in float64, by the definition of log-SNR."""
  snr = np.exp(np.float64(log_snr))
  return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


def test_time_grid_is_even_in_time():
  for schedule in (Cosine(), Linear()):
    grid = time_grid(schedule, 8)
    assert grid.shape == (9,) and grid[-1] == np.inf
    times = schedule.time(grid[:-1])
    np.testing.assert_allclose(times, 1 - np.arange(8) / 8, atol=4e-4)
    assert np.all(np.diff(grid) > 0)
  with pytest.raises(UserError, match="steps=0"):
    time_grid(Cosine(), 0)


@pytest.mark.parametrize(
  "rule",
  [DDPM(), DDPM(gamma=0.3), DDPM(gamma=1.0), DDIM(), DDIM(eta=1.0)],
  ids=repr,
)
def test_samplers_reach_the_data_distribution(rule, cond, gaussian):
  mean, std, shape, steps = 0.3, 0.5, (8, 4, 32, 32, 1), 1024
  network, rng = gaussian(mean, std), np.random.default_rng(0)
  denoise = lambda z, log_snr: network(z, log_snr[None], cond(8))
  advance = jax.jit(lambda *args: rule.advance(denoise, *args))
  normal = lambda: rng.standard_normal(shape, np.float32)
  grid, state = np.asarray(time_grid(Cosine(), steps)), rule.init(normal())
  for log_snr_t, log_snr_s in itertools.pairwise(grid):
    state = advance(state, log_snr_t, log_snr_s, normal())
  video = np.asarray(state.z, np.float64)
  n = video.size
  assert abs(video.mean() - mean) < 4 * std / np.sqrt(n)
  # Monte Carlo, and 1024 steps instead of infinitely many: the moments of
  # each step, iterated in float64, end with a variance off by less than this.
  assert abs(video.var() / std**2 - 1) < 4 * np.sqrt(2 / n) + 0.008
  kurtosis = ((video - video.mean()) ** 4).mean() / video.var() ** 2
  assert abs(kurtosis - 3) < 4 * np.sqrt(24 / n)


def test_ddim_is_a_first_order_solver_of_the_flow(cond, gaussian):
  # The flow keeps each value at its quantile, so for Gaussian data its map
  # from t=1 to t=0 is affine and known.
  mean, std, shape = 0.3, 0.5, (1, 1, 8, 8, 1)
  alpha, sigma = scales(-15.0)
  z = np.random.default_rng(0).standard_normal(shape)
  scan = jax.jit(sample_chunk, static_argnums=1)
  chunk_fn = lambda *args: scan(
    gaussian(mean, std), DDIM(), *args, sample_keys([0]), cond(1)
  )
  errors, counts = [], np.array([16, 32, 64, 128, 256])
  for steps in counts:
    # Chunks of one step: one compilation for all the step counts.
    grid = time_grid(Cosine(), int(steps))
    video = sample(chunk_fn, DDIM().init(jnp.float32(z)), grid, chunk=1)
    spread = np.sqrt(alpha**2 * std**2 + sigma**2)
    exact = mean + std * (z - alpha * mean) / spread
    errors.append(np.sqrt(np.square(video - exact).mean()))
  slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert 0.8 < slope < 1.2, (slope, errors)
  assert errors[-1] < 5e-3


class Counted:
  """Jits a whole sampler once and counts how often it is traced."""

  def __init__(self, rule):
    self.traces = 0

    @jax.jit
    def chunk(params, state, log_snrs, first_step, keys, cond, null):
      self.traces += 1

      def network(z, log_snr, cond):
        shift = cond.text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
        mixed = jnp.tanh(z + jnp.roll(z, 1, axis=1) * shift)
        return predict("v", mixed, z, log_snr)

      starts = window_starts(6, 4, 2)
      guided = guide(network, params["scale"], null)
      windowed = multi_diffusion(guided, starts, 4)
      denoiser = threshold(windowed, params["percentile"], params["max"])
      return sample_chunk(
        denoiser, rule, state, log_snrs, first_step, keys, cond
      )

    self.chunk = chunk
    self.rule = rule

  def __call__(
    self, params, seed, cond, null, chunk=5, steps=12, callback=None
  ):
    keys = sample_keys([seed, seed + 1])
    z = frame_noise(keys, INITIAL, 6, (4, 4, 1))
    step = lambda *args: self.chunk(params, *args, keys, cond, null)
    grid = time_grid(Cosine(), steps)
    return sample(step, self.rule.init(z), grid, chunk, callback)


PARAMS = {"scale": 2.0, "percentile": 0.95, "max": 1.5}


@pytest.fixture(scope="module")
def sampler():
  return Counted(DDPM(gamma=0.3))


def test_changing_values_never_recompiles(cond, sampler):
  first = sampler(PARAMS, 0, cond(2), cond(1))
  assert sampler.traces == 1
  others = [
    sampler(PARAMS | {"scale": 7.0}, 0, cond(2), cond(1)),
    sampler(PARAMS | {"percentile": 0.5}, 0, cond(2), cond(1)),
    sampler(PARAMS | {"max": 1.0}, 0, cond(2), cond(1)),
    sampler(PARAMS, 1, cond(2), cond(1)),
    sampler(PARAMS, 0, cond(2, seed=3), cond(1)),
    sampler(PARAMS, 0, cond(2), cond(1, seed=3)),
  ]
  assert sampler.traces == 1
  for other in others:  # and each value does reach the video
    assert np.abs(np.asarray(other) - np.asarray(first)).max() > 1e-3
  again = sampler(PARAMS, 0, cond(2), cond(1))
  np.testing.assert_array_equal(again, first)


def test_chunks_give_the_same_video_and_compile_once(cond, sampler):
  whole = np.asarray(sampler(PARAMS, 0, cond(2), cond(1), chunk=12))
  for chunk in (5, 100):  # 12 steps as 3 x 4, 1 x 12
    before, done = sampler.traces, []
    video = sampler(
        PARAMS, 0, cond(2), cond(1), chunk,
        callback=lambda step, z, done=done: done.append(step),
    )  # fmt: skip
    np.testing.assert_allclose(video, whole, atol=1e-5)
    assert sampler.traces <= before + 1
    assert done == {5: [4, 8, 12], 100: [12]}[chunk]


def test_the_callback_sees_the_canvas_and_may_stop():
  chunk_fn = lambda state, log_snrs, first: State(state.z + 1)
  seen = []

  def callback(step, z):
    seen.append((step, float(z[0, 0, 0, 0, 0])))
    return step == 4

  z = jnp.zeros((1, 1, 1, 1, 1))
  grid = time_grid(Cosine(), 6)
  out = sample(chunk_fn, State(z), grid, 2, callback)
  assert seen == [(2, 1.0), (4, 2.0)]
  assert float(out.squeeze()) == 2.0

  def interrupt(step, z):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    sample(chunk_fn, State(z), grid, 2, interrupt)
  with pytest.raises(UserError, match="chunk=0"):
    sample(chunk_fn, State(z), grid, 0)


def test_rules_with_memory_and_two_evaluations_fit(cond):
  """Heun's method and a memory of predictions, as a rule from outside."""

  class HeunWithCount:
    def init(self, z):
      return State(z, jnp.int32(0))

    def advance(self, denoise, state, log_snr_t, log_snr_s, noise):
      first = denoise(state.z, log_snr_t)
      z = DDIM().step(first, state.z, log_snr_t, log_snr_s, noise)
      second = denoise(z, jnp.minimum(log_snr_s, 15.0))
      mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
      z2 = DDIM().step(mean, state.z, log_snr_t, log_snr_s, noise)
      return State(jnp.where(jnp.isinf(log_snr_s), z, z2), state.memory + 2)

  zero = lambda z, log_snr, cond: Prediction(0 * z, 0 * z, 0 * z)
  keys, rule = sample_keys([0]), HeunWithCount()
  z = frame_noise(keys, INITIAL, 2, (2, 2, 1))
  grid = time_grid(Cosine(), 4)
  state = sample_chunk(zero, rule, rule.init(z), grid, 0, keys, cond(1))
  assert int(state.memory) == 8
