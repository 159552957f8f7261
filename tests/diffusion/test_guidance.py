import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import (
  Part,
  _position,
  clip_quantile,
  guide,
  interval,
  oscillate,
  threshold,
)
from lumiere_jax.diffusion.multidiffusion import multi_diffusion, window_starts
from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.diffusion.schedules import Cosine, SquaredCosCapV2
from lumiere_jax.diffusion.sharded_multidiffusion import divide
from lumiere_jax.errors import UserError
from lumiere_jax.typing import Cond
from tests.diffusion.conftest import scales
from tests.references.samplers import time_grid

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


def both(z, full, null):
  """Predictions with the text, and with that of a null conditioning of one."""
  without = full.replace(text=jnp.tile(null.text, (2, 1, 1)))
  return network(z, LOG_SNR, full), network(z, LOG_SNR, without)


@pytest.mark.parametrize("frames", [False, True])
def test_guidance_by_hand(z, cond, frames):
  full = cond(2, frames=0.2 * z if frames else None)
  null = cond(1, seed=7)
  with_text, without = both(z, full, null)
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
  alpha, sigma = scales(-15.0)
  want = (alpha - 0.9 * sigma) * np.asarray(z, np.float64)
  np.testing.assert_allclose(got.x0, want, rtol=1e-5, atol=1e-5)


def test_guidance_oscillates_by_step():
  """High for the first steps, then low and high by turns."""
  grid = time_grid(Cosine(), 8)
  by_level = jax.jit(lambda after: oscillate(15.0, 1.0, after, grid)(grid[:-1]))
  h, low = 15, 1
  for after, want in (
    (3, [h, h, h, low, h, low, h, low]),
    (0, [low, h, low, h, low, h, low, h]),
    (8, [h] * 8),
    (-1, [h] * 8),
  ):
    np.testing.assert_array_equal(by_level(after), want)
  # A chunk of the steps knows their numbers in the whole.
  chunk = oscillate(15.0, 1.0, 3, grid[4:7], first_step=4)
  np.testing.assert_array_equal(chunk(grid[4:6]), [h, low])


def test_guidance_in_an_interval_of_times():
  schedule = Cosine()
  t = jnp.array([1.0, 0.81, 0.8, 0.5, 0.3, 0.29, 0.0])
  scale = interval(7.0, 0.3, 0.8, schedule)(schedule.log_snr(t))
  np.testing.assert_array_equal(scale, [1, 1, 7, 7, 7, 1, 1])
  for schedule in (Cosine(shift=-3.0), Cosine(shift=3.0), SquaredCosCapV2()):
    always = interval(7.0, 0.0, 1.0, schedule)(schedule.log_snr(t))
    np.testing.assert_array_equal(always, 7)


def test_scales_compose_and_reach_the_prediction(z, cond):
  """Low outside the interval stays 1; inside it alternates, per sample."""
  schedule = Cosine()
  grid = time_grid(schedule, 4)  # t = 1, 3/4, 1/2, 1/4
  high = jnp.array([5.0, 9.0])
  scale = interval(oscillate(high, 0.0, 1, grid), 0.2, 0.8, schedule)
  full, null = cond(2), cond(1, seed=7)
  for step, want in enumerate([[1, 1], [0, 0], [5, 9], [0, 0]]):
    log_snr = jnp.full(2, grid[step])
    got = guide(network, scale, null)(z, log_snr, full)
    want = guide(network, jnp.float32(want), null)(z, log_snr, full)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def by_hand(guided, conditional, amount):
  """Lin et al., section 3.4, frame by frame in float64."""
  x0 = np.array(guided, np.float64)
  for frame, other in zip(
    x0.reshape(-1, *x0.shape[2:]),
    np.asarray(conditional, np.float64).reshape(-1, *x0.shape[2:]),
    strict=True,
  ):
    rescaled = frame * other.std() / frame.std()
    frame[...] = amount * rescaled + (1 - amount) * frame
  return x0


@pytest.mark.parametrize("amount", [0.7, 1.0])
def test_rescaling_by_hand_in_all_forms(z, cond, amount):
  full, null = cond(2), cond(1, seed=7)
  z = z.at[:, 1].multiply(0.2)  # frames differ
  plain = guide(network, 3.0, null)(z, LOG_SNR, full)
  got = guide(network, 3.0, null, amount)(z, LOG_SNR, full)
  with_text = network(z, LOG_SNR, full)
  want = by_hand(plain.x0, with_text.x0, amount)
  assert np.abs(want - plain.x0).max() > 0.1
  np.testing.assert_allclose(got.x0, want, rtol=1e-5, atol=1e-5)
  again = predict("x0", got.x0, z, LOG_SNR)
  np.testing.assert_allclose(got.eps, again.eps, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(got.v, again.v, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(got.log_var, with_text.log_var)


def test_rescaling_that_changes_nothing(z, cond):
  full, null = cond(2), cond(1, seed=7)
  with_text, without = both(z, full, null)
  none = guide(network, 3.0, null, 0.0)(z, LOG_SNR, full)
  for form in ("x0", "eps", "v"):
    mixed = 3.0 * getattr(with_text, form) - 2.0 * getattr(without, form)
    np.testing.assert_array_equal(getattr(none, form), mixed)
  # The conditional model has its own contrast already.
  plain = guide(network, 1.0, null)(z, LOG_SNR, full)
  one = guide(network, 1.0, null, 1.0)(z, LOG_SNR, full)
  jax.tree.map(np.testing.assert_array_equal, one, plain)
  # A frame without contrast stays as it is.
  flat = lambda z, log_snr, cond: predict("x0", 0 * z, z, log_snr)
  out = guide(flat, 3.0, null, 1.0)(z, LOG_SNR, full)
  np.testing.assert_array_equal(out.x0, 0)


def test_rescaled_windows_make_no_seams(cond):
  """Frames that are alike are rescaled alike, whatever shares their window."""

  def framewise(z, log_snr, cond):
    mean = cond.text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
    return predict("v", jnp.tanh(z + mean), z, log_snr)

  z = jax.random.normal(jax.random.key(3), (2, 8, 4, 4, 3))
  z = z * jnp.linspace(0.1, 3.0, 8).reshape(1, 8, 1, 1, 1)
  guided = guide(framewise, 5.0, cond(1, seed=7), 0.7)
  whole = jax.jit(guided)(z, LOG_SNR, cond(2))
  windows = multi_diffusion(guided, (0, 3, 5), 3)
  got = jax.jit(windows)(z, LOG_SNR, cond(2))
  np.testing.assert_allclose(got.x0, whole.x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "percentile, max_value",
  [(0.995, np.inf), (0.95, 1.5), (0.5, 100.0), (1.0, 100.0), (0.9, 1.0)],
)
def test_threshold_against_numpy_per_clip(z, cond, percentile, max_value):
  z = z.at[0, 1].multiply(10.0).at[1].multiply(0.01)  # frames and clips differ
  net = lambda z, log_snr, cond: predict("x0", z, z, log_snr, log_var=z)
  got = jax.jit(lambda p, m: threshold(net, p, m)(z, LOG_SNR, cond(2)))(
    percentile, max_value
  )
  want = np.array(z, np.float64)
  for clip in want:
    s = np.quantile(np.abs(clip), percentile)
    s = min(max(s, 1.0), max_value)
    clip[...] = np.clip(clip, -s, s) / s
  np.testing.assert_allclose(got.x0, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(got.x0[1], z[1])  # within [-1, 1]
  alpha, sigma = scales(LOG_SNR.reshape(-1, 1, 1, 1, 1))
  eps = (z - alpha * want) / sigma
  np.testing.assert_allclose(got.eps, eps, rtol=1e-4, atol=1e-4)
  v = alpha * eps - sigma * want
  np.testing.assert_allclose(got.v, v, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(got.log_var, z)


@pytest.mark.parametrize("percentile", [0.0, 0.3, 0.5, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "huge"])
def test_the_quantile_of_clips_is_numpys(percentile, kind):
  x = np.abs(np.random.default_rng(0).standard_normal((2, 3, 5, 4, 3)))
  x = {"normal": x, "ties": np.round(2 * x), "zeros": 0 * x, "huge": x * 1e30}[
    kind
  ].astype(np.float32)
  found = jax.jit(clip_quantile)(jnp.asarray(x), percentile)
  expected = np.quantile(
    x.astype(np.float64), percentile, axis=(1, 2, 3, 4), keepdims=True
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_static_background_is_constant(cond):
  """White beside one bright frame, in windows of two. Of that frame alone s
  is 1.4, so white would fall to 0.714 there and be 1 in the other frames."""
  z = np.ones((1, 5, 8, 8, 3), np.float32)
  z[:, 2, 2:] = 1.4
  net = lambda z, log_snr, cond: predict("x0", z, z, log_snr)
  windows = multi_diffusion(net, window_starts(5, 2, 1), 2)
  run = jax.jit(threshold(windows, 0.95, 1.5))
  x0 = np.asarray(run(jnp.asarray(z), LOG_SNR[:1], cond(1)).x0)
  assert np.quantile(z[:, 2], 0.95) == np.float32(1.4)
  s = np.quantile(z.astype(np.float64), 0.95)
  np.testing.assert_allclose(x0[:, :, :2], 1 / s, atol=1e-6)
  assert np.ptp(x0[:, :, :2]) < 1e-6


@pytest.mark.parametrize(
  "last",
  [
    *(0, 1, 191, 2**24 + 1, 80 * 1024 * 1024 * 3 - 1, 2**31 - 2),
    *np.random.default_rng(0).integers(2**31 - 1, size=50).tolist(),
  ],
)
def test_ranks_are_exact_in_clips_of_any_size(last):
  """Against whole numbers without end; float32 is off by tens there."""
  part_way = jax.jit(_position, static_argnums=1)
  for digits in ("0", "0.000001", "0.3", "0.95", "0.995", "0.999999", "1"):
    whole, rest = part_way(float(digits), last)
    exact = fractions.Fraction(digits) * last
    assert int(whole) == math.floor(exact)
    assert abs(float(rest) - float(exact % 1)) < 1e-6


def test_too_large_clips():
  clip = jax.ShapeDtypeStruct((1, 80, 4096, 4096, 3), jnp.float32)
  with pytest.raises(UserError, match=r"4026531840 values.*shorter or smaller"):
    jax.eval_shape(lambda x: clip_quantile(x, 0.95), clip)


@pytest.mark.parametrize("devices", [2, 3, 5])
@pytest.mark.parametrize("percentile", [0.0, 0.6, 0.95, 1.0])
def test_thresholds_of_sharded_clips(cond, devices, percentile):
  """Bit for bit: frames that fill up, or are held elsewhere, do not count."""
  z = 3 * jax.random.normal(jax.random.key(0), (2, 10, 4, 4, 3))
  division = divide((0, 3, 4), 6, 10, devices)
  held = z[:, division.frames].reshape(2, devices, -1, *z.shape[2:])
  for k, count in enumerate(division.counts):
    assert count < division.size or k == np.argmax(division.counts)
    held = held.at[:, k, count:].set(1e9 * (-1) ** k)  # left there by windows
  net = lambda z, log_snr, cond: predict("x0", z, z, log_snr)

  def on_one(z, owned):
    part = Part(axis="data", owned=owned, num_frames=10)
    return threshold(net, percentile, 100.0, part)(z, LOG_SNR, cond(2)).x0

  everywhere = jax.vmap(on_one, (1, 0), 1, axis_name="data")
  x0 = jax.jit(everywhere)(held, division.tables["counts"])
  x0 = x0.reshape(2, -1, *z.shape[2:])[:, division.places]
  whole = jax.jit(threshold(net, percentile, 100.0))(z, LOG_SNR, cond(2)).x0
  np.testing.assert_array_equal(x0, whole)


def test_static_threshold_is_a_clip(z, cond):
  net = lambda z, log_snr, cond: predict("x0", z, z, log_snr)
  got = threshold(net, 0.95, 1.0)(z, LOG_SNR, cond(2))
  np.testing.assert_array_equal(got.x0, np.clip(z, -1, 1))
