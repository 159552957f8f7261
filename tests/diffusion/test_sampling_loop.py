import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import guide, interval, oscillate, threshold
from lumiere_jax.diffusion.multidiffusion import multi_diffusion, window_starts
from lumiere_jax.diffusion.noise import INITIAL, frame_noise, sample_keys
from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.diffusion.samplers import (
  DDIM,
  DDPM,
  DPMSolverPP2M,
  Heun,
  State,
)
from lumiere_jax.diffusion.sampling_loop import part_way, sample, sample_chunk
from lumiere_jax.diffusion.schedules import Cosine
from lumiere_jax.errors import UserError
from lumiere_jax.typing import Cond
from tests.diffusion.conftest import Gaussian, scales
from tests.references.samplers import time_grid


@pytest.mark.parametrize(
  "rule",
  [
    DDPM(),
    DDPM(gamma=0.3),
    DDPM(gamma=1.0),
    DDIM(),
    DDIM(eta=1.0),
    DPMSolverPP2M(),
    Heun(),
  ],
  ids=repr,
)
def test_samplers_reach_the_data_distribution(rule, cond):
  mean, std, shape, steps = 0.3, 0.5, (8, 4, 32, 32, 1), 1024
  network, rng = Gaussian(mean, std), np.random.default_rng(0)
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


@pytest.mark.parametrize(
  "rule, order, bound",
  [(DDIM(), 1, 5e-3), (DPMSolverPP2M(), 2, 3e-4), (Heun(), 2, 3e-5)],
  ids=repr,
)
def test_solvers_of_the_flow_have_their_order(cond, rule, order, bound):
  # The flow keeps each value at its quantile, so for Gaussian data its map
  # from level to level is affine and known.
  mean, std, shape = 0.3, 0.5, (1, 1, 8, 8, 1)
  z = np.random.default_rng(0).standard_normal(shape)
  scan = jax.jit(sample_chunk, static_argnums=1)
  chunk_fn = lambda *args: scan(
    Gaussian(mean, std), rule, *args, sample_keys([0]), cond(1)
  )

  def error(grid):
    # Chunks of one step: one compilation for all the step counts.
    video = sample(chunk_fn, rule.init(jnp.float32(z)), grid, chunk=1)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = map(scales, grid[[0, -1]])
    spread_t = np.hypot(alpha_t * std, sigma_t)
    quantile = (z - alpha_t * mean) / spread_t
    exact = alpha_s * mean + np.hypot(alpha_s * std, sigma_s) * quantile
    return np.sqrt(np.square(video - exact).mean())

  counts = np.array([16, 32, 64, 128])
  errors = [error(np.linspace(-6, 6, n + 1, dtype=np.float32)) for n in counts]
  slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert abs(slope - order) < 0.2, (slope, errors)
  assert error(np.asarray(time_grid(Cosine(), 256))) < bound


class Counted:
  """Jits a whole sampler once and counts how often it is traced."""

  def __init__(self, rule):
    self.traces = 0

    @jax.jit
    def chunk(params, state, log_snrs, first_step, keys, cond, null):
      self.traces += 1

      def network(z, log_snr, cond):
        shift = cond.text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
        mixed = 2 * jnp.tanh(z + jnp.roll(z, 1, axis=1) * shift)
        return predict("v", mixed, z, log_snr)

      starts = window_starts(6, 4, 2)
      scale = oscillate(
        params["scale"], params["low"], params["after"], log_snrs, first_step
      )
      scale = interval(scale, *params["interval"], Cosine())
      guided = guide(network, scale, null, params["rescale"])
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


PARAMS = {
  "scale": 2.0,
  "low": 1.0,
  "after": -1,
  "interval": (0.0, 1.0),
  "rescale": 0.0,
  "percentile": 0.95,
  "max": 1.5,
}


@pytest.fixture(scope="module")
def sampler():
  return Counted(DDPM(gamma=0.3))


def test_changing_values_never_recompiles(cond, sampler):
  run = lambda seed=0, text=0, null=0, **changes: np.asarray(
    sampler(PARAMS | changes, seed, cond(2, seed=text), cond(1, seed=null))
  )
  first = run()
  for change in (
    {"scale": 7.0},
    {"after": 2},
    {"after": 2, "low": 0.0},
    {"interval": (0.3, 1.0)},
    {"interval": (0.0, 0.7)},
    {"rescale": 0.7},
    {"percentile": 0.5},
    {"max": 1.0},
    {"seed": 1},
    {"text": 3},
    {"null": 3},
  ):  # and each value does reach the video
    assert np.abs(run(**change) - first).max() > 1e-3, change
  np.testing.assert_array_equal(run(), first)
  assert sampler.traces == 1


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


@pytest.mark.parametrize("rule", [DPMSolverPP2M(), Heun()], ids=repr)
def test_memory_passes_from_chunk_to_chunk(rule):
  def network(z, log_snr, cond):
    mixed = jnp.tanh(2 * z) + jnp.sin(log_snr).reshape(-1, 1, 1, 1, 1)
    return predict("v", mixed, z, log_snr)

  keys, cond = sample_keys([0]), Cond(text=jnp.zeros((1, 1, 1)))
  scan = jax.jit(lambda *args: sample_chunk(network, rule, *args, keys, cond))
  z = frame_noise(keys, INITIAL, 2, (2, 2, 1))
  grid = time_grid(Cosine(), 6)
  videos = [
    np.asarray(sample(scan, rule.init(z), grid, chunk)) for chunk in (6, 2, 1)
  ]
  np.testing.assert_allclose(videos[1], videos[0], atol=1e-6)
  np.testing.assert_allclose(videos[2], videos[0], atol=1e-6)
  forgetful = lambda state, *rest: scan(rule.init(state.z), *rest)
  other = np.asarray(sample(forgetful, rule.init(z), grid, 2))
  same = np.abs(other - videos[0]).max() < 1e-3
  assert same == (rule.init(z).memory == ())


@pytest.mark.parametrize(
  "strength, first", [(1.0, 0), (0.5, 5), (0.71, 3), (0.06, 9), (1e-9, 9)]
)
def test_rounded_strength_starts_at_a_grid_level(strength, first):
  grid = np.asarray(time_grid(Cosine(), 10))
  levels = part_way(grid, strength, Cosine(), rounded=True)
  np.testing.assert_array_equal(levels, grid[first:])


@pytest.mark.parametrize("steps", [1, 2, 12, 40])
def test_strength_is_the_same_noise_on_any_grid(steps):
  grid = np.float32([-np.inf, *np.linspace(-12, 6, steps), np.inf])
  for strength in (0.01, 0.3, 0.5, 0.55, 0.7, 0.9):
    levels = part_way(grid, strength, Cosine(), rounded=False)
    first = -2 * np.log(np.tan(np.pi / 2 * strength))
    assert levels[0] == pytest.approx(first, abs=1e-4)
    np.testing.assert_array_equal(levels[1:], grid[grid > levels[0] + 1e-3])
  whole = part_way(grid, 1.0, Cosine(), rounded=False)
  np.testing.assert_array_equal(whole, grid)

  for strength in (0.0, 1.01, float("nan")):
    with pytest.raises(UserError, match=r"is not in \(0, 1\]"):
      part_way(grid, strength, Cosine(), rounded=False)
