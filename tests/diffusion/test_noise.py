import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.noise import INITIAL, frame_noise, sample_keys
from lumiere_jax.errors import UserError

SEEDS = [3, 9, 7, 11]


def in_scan(keys, num_frames, shape, steps=6):
  """Noise of every step, drawn inside a scan that also consumes it."""

  def body(z, step):
    noise = frame_noise(keys, step, num_frames, shape)
    return 0.3 * z + 0.7 * noise, noise

  z = jnp.zeros((keys.shape[0], num_frames, *shape))
  return jax.lax.scan(body, z, jnp.arange(steps))[1]


def test_one_seed_is_bit_equal_in_any_batch():
  # An odd size: vectorised loops then have remainders, which must agree too.
  one, four, shape = sample_keys([7]), sample_keys(SEEDS), (3, 5, 3)
  want = np.asarray(frame_noise(one, 4, 5, shape))[0]
  jitted = jax.jit(frame_noise, static_argnums=(2, 3))
  scanned = jax.jit(in_scan, static_argnums=(1, 2))
  draws = {
    "eager, 4": frame_noise(four, 4, 5, shape)[2],
    "jitted, 4": jitted(four, 4, 5, shape, 0)[2],
    "scanned, 1": scanned(one, 5, shape)[4][0],
    "scanned, 4": scanned(four, 5, shape)[4][2],
  }
  for how, got in draws.items():
    np.testing.assert_array_equal(got, want, err_msg=how)
  later = jitted(four, 4, 5, shape, 3)[2]
  np.testing.assert_array_equal(later[:2], want[3:])


def test_noise_is_standard_normal_and_independent():
  draw = jax.jit(frame_noise, static_argnums=(2, 3))
  draws = [
    draw(sample_keys(range(8), stream), step, 4, (16, 16, 2))
    for stream, step in [(0, 0), (0, 1), (0, INITIAL), (1, 0)]
  ]
  flat = np.concatenate([np.asarray(x).reshape(32, -1) for x in draws])
  assert flat.shape == (128, 512)
  assert abs(flat.mean()) < 4 / np.sqrt(flat.size)
  assert abs(flat.var() - 1) < 4 * np.sqrt(2 / flat.size)
  # One row per seed, frame, step and stream: no two correlate.
  correlation = np.corrcoef(flat) - np.eye(128)
  assert np.abs(correlation).max() < 6 / np.sqrt(512)


def test_seeds_span_32_bits():
  data = jax.random.key_data(sample_keys([0, 1, 2**31, 2**32 - 1]))
  assert len({tuple(row) for row in np.asarray(data).tolist()}) == 4
  for seed in (-1, 2**32):
    with pytest.raises(UserError, match=f"seed {seed} is not in"):
      sample_keys([0, seed])
