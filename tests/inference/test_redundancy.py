"""What all frames share keeps its spread, at the defaults of every config."""

import numpy as np
import pytest

from benchmarks import redundancy
from lumiere_jax.diffusion.samplers import DDIM
from lumiere_jax.diffusion.schedules import Cosine, SquaredCosCapV2

STAGES = redundancy.stages()


@pytest.mark.parametrize("name", STAGES)
def test_defaults_keep_the_spread(name):
  found = redundancy.of_stage(STAGES[name])
  assert found.colour == pytest.approx(1, abs=0.03)
  if STAGES[name].video.num_frames > 1:
    assert found.slope == pytest.approx(1, abs=0.05)


def test_every_stage_but_few_step_enlargers_keeps_it_by_itself():
  """Without what the low resolution tells of the colour."""
  for name, config in STAGES.items():
    if config.defaults.steps > 4:
      alone = redundancy.of_stage(config).alone
      assert alone == pytest.approx(1, abs=0.03), name


def test_the_grids_of_before_lose_it():
  """Figures that were measured with pixels drawn, 64 videos."""
  size = 80 * 128 * 128
  end = lambda levels: np.append(np.asarray(levels), np.float32(np.inf))
  leading = end(SquaredCosCapV2().grid(50))
  assert 0.5 * redundancy.spread(leading, DDIM(), size) < 0.04
  cosine = end(Cosine().grid(50))
  small = 0.5 * redundancy.spread(cosine, DDIM(), 64 * 64)
  assert small == pytest.approx(0.335, abs=0.01)


def test_one_number_stands_for_all_pixels():
  """The reduction itself: sampled with pixels, the mean ends the same."""
  import jax.numpy as jnp

  from lumiere_jax.diffusion.noise import sample_keys
  from lumiere_jax.diffusion.prediction import Prediction
  from lumiere_jax.diffusion.sampling_loop import sample_chunk
  from lumiere_jax.diffusion.schedules import alpha_sigma
  from lumiere_jax.typing import Cond

  shape = (32, 4, 8, 8, 1)
  count, std = 4 * 8 * 8, redundancy.STD
  levels = end = np.float32([-np.inf, -7, -4, -1, 2, np.inf])
  z = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

  def constant(z, log_snr, cond):
    alpha, sigma = alpha_sigma(log_snr.reshape(-1, 1, 1, 1, 1))
    mean = z.mean(axis=(1, 2, 3, 4), keepdims=True)
    x0 = alpha * std**2 * mean / (alpha**2 * std**2 + sigma**2 / count)
    x0 = jnp.broadcast_to(x0, z.shape)
    eps = (z - alpha * x0) / sigma
    return Prediction(x0, eps, alpha * eps - sigma * x0)

  end = sample_chunk(
    constant,
    DDIM(),
    DDIM().init(jnp.asarray(z)),
    jnp.asarray(levels),
    0,
    sample_keys(range(32)),
    Cond(text=jnp.zeros((32, 1, 1))),
  )
  means = z.mean(axis=(1, 2, 3, 4))
  ratio = np.asarray(end.z).mean(axis=(1, 2, 3, 4)) / means
  want = redundancy.spread(levels, DDIM(), count) * std * np.sqrt(count)
  np.testing.assert_allclose(ratio, want, rtol=1e-3)
