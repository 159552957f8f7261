import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import guide, threshold
from lumiere_jax.diffusion.process import predict
from lumiere_jax.typing import Cond

LOG_SNR = jnp.array([-3.0, 1.0])


@pytest.fixture
def z():
  return 3 * jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))


def network(z, log_snr, cond):
  """Depends on all it is given, sample by sample."""
  mean = lambda x: x.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
  weight = 1.0
  if cond.text_mask is not None:
    weight = cond.text_mask.sum(axis=1).reshape(-1, 1, 1, 1, 1)
  eps = jnp.tanh(z) * mean(cond.text) + weight
  if cond.frames is not None:
    eps = eps + cond.frames
  return predict("eps", eps, z, log_snr, log_var=eps * 0.1)


@pytest.mark.parametrize("frames", [False, True])
def test_guidance_by_hand(z, cond, frames):
  full = cond(2, frames=0.2 * z if frames else None)
  null = cond(1, seed=7)
  with_text = network(z, LOG_SNR, full)
  without = network(
    z, LOG_SNR, full.replace(text=jnp.tile(null.text, (2, 1, 1)))
  )
  for w in (0, 1, 2.0):
    got = guide(network, w, null)(z, LOG_SNR, full)
    want = without.eps + w * (with_text.eps - without.eps)
    np.testing.assert_allclose(got.eps, want, rtol=1e-5, atol=1e-5)
    again = predict("eps", want, z, LOG_SNR)
    np.testing.assert_allclose(got.x0, again.x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.v, again.v, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.log_var, with_text.log_var, rtol=1e-6)
  exact = guide(network, 1.0, null)(z, LOG_SNR, full)
  np.testing.assert_allclose(exact.eps, with_text.eps, rtol=1e-6)


def test_scale_and_null_text_per_sample(z, cond):
  full, null = cond(2), cond(2, seed=7)
  got = guide(network, jnp.array([0.0, 3.0]), null)(z, LOG_SNR, full)
  with_text, without = network(z, LOG_SNR, full), network(z, LOG_SNR, null)
  want = without.eps[1] + 3 * (with_text.eps[1] - without.eps[1])
  np.testing.assert_allclose(got.eps[0], without.eps[0], rtol=1e-5)
  np.testing.assert_allclose(got.eps[1], want, rtol=1e-5, atol=1e-5)


def test_both_halves_are_one_call(z, cond):
  batches = []

  def counting(z, log_snr, cond):
    batches.append((z.shape[0], log_snr.shape[0], cond.text.shape[0]))
    return network(z, log_snr, cond)

  guide(counting, 2.0, cond(1))(z, LOG_SNR, cond(2))
  assert batches == [(4, 4, 4)]


@pytest.mark.parametrize("given", ["cond", "null", "both"])
def test_masks_follow_their_text(z, cond, given):
  full, null = cond(2), cond(1, seed=7)
  mask = jnp.array([[True, False, False], [True, True, False]])
  if given in ("cond", "both"):
    full = full.replace(text_mask=mask)
  if given in ("null", "both"):
    null = null.replace(text_mask=mask[:1])
  ones = jnp.ones((2, 3), bool)
  masked = lambda text, mask: Cond(text, ones if mask is None else mask)
  null_mask = None if null.text_mask is None else jnp.tile(mask[:1], (2, 1))
  with_text = network(z, LOG_SNR, masked(full.text, full.text_mask))
  without = network(
    z, LOG_SNR, masked(jnp.tile(null.text, (2, 1, 1)), null_mask)
  )
  got = guide(network, 3.0, null)(z, LOG_SNR, full)
  want = without.eps + 3 * (with_text.eps - without.eps)
  np.testing.assert_allclose(got.eps, want, rtol=1e-5, atol=1e-5)


def test_guidance_keeps_precision_at_the_noisiest_level(cond):
  # A v-network near pure noise: v -> x0 is exact there, eps -> x0 is not.
  z = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 3))
  log_snr = jnp.array([-15.0])
  net = lambda z, log_snr, cond: predict("v", 0.9 * z, z, log_snr)
  got = guide(net, 7.0, cond(1))(z, log_snr, cond(1))
  alpha, sigma = np.sqrt(1 / (1 + np.exp(15.0))), np.sqrt(1 / (1 + np.exp(-15)))
  want = (alpha - 0.9 * sigma) * np.asarray(z, np.float64)
  np.testing.assert_allclose(got.x0, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "percentile, max_value",
  [(0.995, np.inf), (0.95, 1.5), (0.5, 100.0), (1.0, 100.0), (0.9, 1.0)],
)
def test_threshold_against_numpy_per_frame(z, cond, percentile, max_value):
  z = z.at[0, 1].multiply(10.0).at[1, 2].multiply(0.01)  # frames differ
  net = lambda z, log_snr, cond: predict("x0", z, z, log_snr, log_var=z)
  got = jax.jit(lambda p, m: threshold(net, p, m)(z, LOG_SNR, cond(2)))(
    percentile, max_value
  )
  want = np.array(z, np.float64)
  for frame in want.reshape(6, 4, 4, 3):
    s = np.quantile(np.abs(frame), percentile)
    s = min(max(s, 1.0), max_value)
    frame[...] = np.clip(frame, -s, s) / s
  np.testing.assert_allclose(got.x0, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(got.x0[1, 2], z[1, 2])  # within [-1, 1]
  snr = np.exp(np.asarray(LOG_SNR, np.float64)).reshape(-1, 1, 1, 1, 1)
  alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
  eps = (z - alpha * want) / sigma
  np.testing.assert_allclose(got.eps, eps, rtol=1e-4, atol=1e-4)
  v = alpha * eps - sigma * want
  np.testing.assert_allclose(got.v, v, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(got.log_var, z)


def test_static_threshold_is_a_clip(z, cond):
  net = lambda z, log_snr, cond: predict("x0", z, z, log_snr)
  got = threshold(net, 0.95, 1.0)(z, LOG_SNR, cond(2))
  np.testing.assert_array_equal(got.x0, np.clip(z, -1, 1))
