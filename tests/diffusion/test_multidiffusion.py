import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import guide, threshold
from lumiere_jax.diffusion.multidiffusion import (
  WEIGHTS,
  multi_diffusion,
  window_starts,
)
from lumiere_jax.diffusion.noise import INITIAL, frame_noise, sample_keys
from lumiere_jax.diffusion.prediction import Prediction, predict
from lumiere_jax.diffusion.samplers import DDPM, State
from lumiere_jax.diffusion.sampling_loop import sample_chunk
from lumiere_jax.diffusion.schedules import Cosine
from lumiere_jax.errors import UserError
from tests.diffusion.conftest import Gaussian
from tests.references.samplers import time_grid

LOG_SNR = jnp.array([-1.0, 2.0])
FORMS = ("x0", "eps", "v", "log_var")


@pytest.fixture
def z():
  return jax.random.normal(jax.random.key(0), (2, 9, 2, 3, 1))


def entangled(z, log_snr, cond):
  """Not linear; a frame's prediction depends on its window and place in it."""
  over_time = lambda x: x.mean(axis=(1, 2, 3, 4), keepdims=True)
  place = jnp.arange(z.shape[1], dtype=jnp.float32).reshape(1, -1, 1, 1, 1)
  text = cond.text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
  out = jnp.sin(3 * z * over_time(z**2) + 0.3 * place) + text
  if cond.frames is not None:
    out = out + over_time(jnp.cos(cond.frames))
  return predict("v", out, z, log_snr, log_var=jnp.cos(3 * out))


entangled_alone = jax.jit(entangled)


def per_frame(z, log_snr, cond):
  """Not linear, but each frame by itself, as the spatial layers are."""
  brightness = z.mean(axis=(2, 3, 4), keepdims=True)
  text = cond.text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
  return predict("eps", jnp.tanh(z * text) + brightness, z, log_snr)


def least_squares(outputs, starts, window, frames, weight):
  """argmin_J sum_i ||W_i (F_i J - Phi_i)||^2, solved as one linear system."""
  rows, right = [], []
  for start, output in zip(starts, outputs, strict=True):
    for place in range(window):
      row = np.zeros(frames)
      row[start + place] = np.sqrt(weight[place])
      rows.append(row)
      right.append(np.sqrt(weight[place]) * np.asarray(output[:, place]))
  right = np.stack(right).astype(np.float64)
  flat = right.reshape(len(rows), -1)
  solution = np.linalg.lstsq(np.stack(rows), flat, rcond=None)[0]
  return np.moveaxis(solution.reshape(frames, *right.shape[1:]), 0, 1)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
  "starts, window, chunk",
  [((0, 2, 5), 4, 1), ((0, 2, 5), 4, 2), ((0, 1, 2, 3, 4), 5, 3)],
)
def test_solves_the_least_squares_problem(
  z, cond, weights, starts, window, chunk
):
  frames = jax.random.normal(jax.random.key(5), z.shape)
  full = cond(2, frames=frames)
  denoiser = multi_diffusion(entangled, starts, window, chunk, weights)
  got = jax.jit(denoiser)(z, LOG_SNR, full)
  ramp = [min(i + 1, window - i) for i in range(window)]
  weight = ramp if weights == "ramp" else [1.0] * window
  outputs = [
    entangled_alone(
      z[:, s : s + window],
      LOG_SNR,
      full.replace(frames=frames[:, s : s + window]),
    )
    for s in starts
  ]
  assert not np.allclose(outputs[0].x0[:, starts[1]], outputs[1].x0[:, 0])
  for form in FORMS:
    parts = [getattr(out, form) for out in outputs]
    want = least_squares(parts, starts, window, 9, weight)
    np.testing.assert_allclose(
      getattr(got, form), want, rtol=1e-5, atol=1e-5, err_msg=form
    )


@pytest.mark.parametrize("jit", [False, True])
def test_one_window_equals_none_exactly(z, cond, jit):
  wrap = jax.jit if jit else (lambda f: f)
  full = cond(2, frames=z)
  plain = wrap(entangled)(z, LOG_SNR, full)
  starts = window_starts(9, 9, 2)
  for weights in WEIGHTS:
    one = wrap(multi_diffusion(entangled, starts, 9, weights=weights))
    jax.tree.map(np.testing.assert_array_equal, one(z, LOG_SNR, full), plain)


@pytest.mark.parametrize(
  "weights, wrap",
  [
    ("ramp", lambda net: net),
    ("uniform", lambda net: threshold(net, 0.9, 1.5)),
  ],
  ids=["plain", "thresholded"],
)
def test_windows_of_a_per_frame_denoiser_change_nothing(z, cond, weights, wrap):
  starts = window_starts(9, 4, 2)
  windowed = wrap(multi_diffusion(per_frame, starts, 4, 2, weights))
  got = jax.jit(windowed)(z, LOG_SNR, cond(2))
  want = jax.jit(wrap(per_frame))(z, LOG_SNR, cond(2))
  for form in ("x0", "eps", "v"):
    np.testing.assert_allclose(
      getattr(got, form), getattr(want, form), rtol=1e-5, atol=1e-5
    )


def test_each_window_takes_its_own_conditioning(z, cond):
  seen = []

  def copy(z, log_snr, cond):
    seen.append((z.shape[0], z.shape[1], cond.text.shape[0]))
    weight = cond.text[:, 0, 0] + 10 * cond.noise_level + 100 * log_snr
    x0 = cond.frames[..., :1] * weight.reshape(-1, 1, 1, 1, 1)
    return predict("x0", x0, z, log_snr)

  frames = jax.random.normal(jax.random.key(1), (2, 9, 2, 3, 4))
  full = cond(2, frames=frames).replace(noise_level=jnp.array([1.0, 2.0]))
  weight = full.text[:, 0, 0] + 10 * full.noise_level + 100 * LOG_SNR
  want = frames[..., :1] * weight.reshape(-1, 1, 1, 1, 1)
  for chunk in (1, 3, 8):
    seen.clear()
    denoiser = multi_diffusion(copy, (0, 2, 4, 5), 4, chunk)
    got = jax.jit(denoiser)(z, LOG_SNR, full)
    np.testing.assert_allclose(got.x0, want, rtol=1e-5, atol=1e-5)
    # Never more than a chunk of windows at once, and as equal as can be.
    size = {1: 1, 3: 2, 8: 4}[chunk]
    assert set(seen) == {(2 * size, 4, 2 * size)}


@pytest.mark.parametrize("chunk", [1, 3])
def test_guidance_inside_windows(z, cond, chunk):
  # Scale and null text per sample follow their samples into the windows.
  full, null = cond(2, frames=z), cond(2, seed=4)
  scale, starts = jnp.array([0.5, 3.0]), window_starts(9, 4, 2)
  guided = multi_diffusion(guide(entangled, scale, null), starts, 4, chunk)
  got = jax.jit(guided)(z, LOG_SNR, full)
  windowed = jax.jit(multi_diffusion(entangled, starts, 4))
  with_text = windowed(z, LOG_SNR, full)
  without = windowed(z, LOG_SNR, full.replace(text=null.text))
  w = scale.reshape(-1, 1, 1, 1, 1)
  want = w * with_text.x0 + (1 - w) * without.x0
  np.testing.assert_allclose(got.x0, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(got.log_var, with_text.log_var, atol=1e-5)


def test_bad_settings_are_user_errors(z, cond):
  with pytest.raises(UserError, match="chunk=0"):
    multi_diffusion(entangled, (0, 5), 4, chunk=0)
  with pytest.raises(UserError, match='did you mean "uniform"'):
    multi_diffusion(entangled, (0, 5), 4, weights="unifrom")
  with pytest.raises(UserError, match="frame 4 is not covered"):
    multi_diffusion(entangled, (0, 5), 4)(z, LOG_SNR, cond(2))
  with pytest.raises(UserError, match="from frame 6 exceeds the video of 9"):
    multi_diffusion(entangled, (0, 4, 6), 4)(z, LOG_SNR, cond(2))


STD, STARTS, WINDOW, SHAPE = 0.5, (0, 4), 6, (4, 10, 32, 32, 1)
SHARED, ALONE = [4, 5], [0, 1, 2, 3, 6, 7, 8, 9]
MONTE_CARLO = 4 * np.sqrt(2 / (4 * 2 * 32 * 32))  # of a variance in SHARED


def variances(video):
  """Variance in the frames that windows share, and in the others."""
  video = np.asarray(video)
  return video[:, SHARED].var(), video[:, ALONE].var()


def test_ancestral_noise_keeps_its_variance_in_overlaps(cond):
  denoiser = multi_diffusion(Gaussian(0.0, STD), STARTS, WINDOW)
  state = State(jax.random.normal(jax.random.key(0), SHAPE))
  grid, keys = time_grid(Cosine(), 256), sample_keys(range(4))
  run = jax.jit(sample_chunk, static_argnums=(0, 1))
  out = run(denoiser, DDPM(), state, grid, 0, keys, cond(4))
  shared, alone = variances(out.z)
  assert abs(shared / alone - 1) < 1.2 * MONTE_CARLO
  assert abs(shared / STD**2 - 1) < MONTE_CARLO + 0.03  # 256 steps


def test_video_does_not_depend_on_chunks_of_windows(cond):
  seeds = [3, 9, 7, 11]
  noise = frame_noise(sample_keys(seeds), INITIAL, 9, (3, 5, 1))

  def make(samples, chunk):
    windowed = multi_diffusion(entangled, window_starts(9, 4, 2), 4, chunk)
    denoiser, rule = threshold(windowed, 0.9, 1.5), DDPM(gamma=0.3)
    keys, grid = sample_keys(seeds[samples]), time_grid(Cosine(), 8)
    z = noise[samples]
    full = cond(z.shape[0]).replace(text=jnp.full((z.shape[0], 3, 2), 0.2))
    run = jax.jit(sample_chunk, static_argnums=(0, 1))
    return np.asarray(run(denoiser, rule, State(z), grid, 0, keys, full).z)

  alone = make(slice(2, 3), chunk=1)
  among_others = make(slice(0, 4), chunk=2)
  assert np.ptp(alone) > 0.5
  np.testing.assert_allclose(among_others[2], alone[0], atol=1e-4)
  assert np.abs(among_others[1] - alone[0]).max() > 0.1


def test_predictions_are_averaged_separately(z, cond):
  # No log-variance in, none out; each form is averaged by itself.
  plain = lambda z, log_snr, cond: Prediction(z, 2 * z, 3 * z)
  got = multi_diffusion(plain, (0, 4), 5)(z, LOG_SNR, cond(2))
  assert got.log_var is None
  np.testing.assert_allclose(got.x0, z, rtol=1e-6)
  np.testing.assert_allclose(got.v, 3 * z, rtol=1e-6)


@pytest.mark.parametrize("axis", [2, 3])
def test_windows_of_rows_and_columns(z, cond, axis):
  frames = jax.random.normal(jax.random.key(5), z.shape)
  full = cond(2, frames=frames)
  swap = lambda x: jnp.swapaxes(x, 1, axis)

  def turned(z, log_snr, cond):
    out = entangled(swap(z), log_snr, cond.map_frames(swap))
    return jax.tree.map(swap, out)

  want = multi_diffusion(entangled, (0, 2, 5), 4, 2, "ramp")(z, LOG_SNR, full)
  got = multi_diffusion(turned, (0, 2, 5), 4, 2, "ramp", axis)(
    swap(z), LOG_SNR, full.map_frames(swap)
  )
  for form in FORMS:
    np.testing.assert_allclose(
      swap(getattr(got, form)), getattr(want, form), atol=1e-5, err_msg=form
    )


def test_nested_windows_of_a_per_pixel_denoiser(cond):
  z = jax.random.normal(jax.random.key(0), (2, 6, 5, 7, 3))
  of_pixels = lambda z, log_snr, cond: predict("x0", jnp.tanh(z), z, log_snr)
  tiled = of_pixels
  for axis, starts, window in ((2, (0, 2), 3), (3, (0, 3), 4), (1, (0, 3), 3)):
    tiled = multi_diffusion(tiled, starts, window, axis=axis)
  got, want = (f(z, LOG_SNR, cond(2)) for f in (tiled, of_pixels))
  np.testing.assert_allclose(got.x0, want.x0, atol=1e-6)


def test_windows_of_the_paper():
  # Overlap 2 (App. C), 80 frames; the last window is shifted to end at 80.
  assert window_starts(80, 28, 2) == (0, 26, 52)
  assert window_starts(80, 41, 2) == (0, 39)
  assert window_starts(80, 16, 2) == (0, 14, 28, 42, 56, 64)
  assert window_starts(80, 16, 2, spread=True) == (0, 12, 25, 38, 51, 64)
  assert window_starts(80, 80, 2) == (0,)
  assert window_starts(16, 16, 2, multiple_of=8, spread=True) == (0,)


@pytest.mark.parametrize("spread", [False, True])
def test_windows_cover_every_video_with_the_overlap(spread):
  for frames in range(1, 40):
    for window in range(1, frames + 1):
      for overlap in range(min(window, 4)):
        starts = window_starts(frames, window, overlap, spread=spread)
        steps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == frames - window
        assert np.all(steps > 0) and np.all(steps <= window - overlap)
        # None can be spared: one fewer could not reach so far.
        assert (len(starts) - 2) * (window - overlap) < frames - window or (
          len(starts) == 1
        )
        if spread and len(steps):
          assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("grid", [2, 3, 4])
def test_windows_on_a_grid(grid, spread):
  """As those of a video `grid` times smaller, and no overlap falls short."""
  for frames in range(1, 16):
    for window in range(1, frames + 1):
      for overlap in range((window - 1) * grid + 1):
        starts = window_starts(
          *(frames * grid, window * grid, overlap), spread=spread, grid=grid
        )
        assert starts[0] == 0 and starts[-1] == (frames - window) * grid
        assert all(start % grid == 0 for start in starts)
        steps = np.diff(starts)
        assert np.all(steps > 0) and np.all(steps <= window * grid - overlap)
        small = window_starts(frames, window, -(-overlap // grid), 1, spread)
        assert starts == tuple(start * grid for start in small)


@pytest.mark.parametrize(
  ("size", "window", "overlap", "options", "message"),
  [
    (16, 28, 2, {}, "window of 28 frames is longer than the video of 16"),
    (16, 8, 8, {}, "overlap of 8 .* from 0 to 7"),
    (16, 8, -1, {}, "overlap of -1"),
    (80, 30, 2, {"multiple_of": 8}, "factor 8; use 3 x 8 = 24"),
    (80, 5, 2, {"multiple_of": 8}, "factor 8; use 1 x 8 = 8"),
    (80, 0, 2, {}, "window of 0"),
    (32, 3, 2, {"multiple_of": 2, "unit": "rows"}, "window of 3 rows is not"),
    (50, 16, 8, {"grid": 4, "unit": "columns"}, "of 50 columns .* use 48"),
    (48, 18, 8, {"grid": 4}, "window of 18 frames is not a .* use 16"),
    (48, 16, 13, {"grid": 4}, "overlap of 13 .* from 0 to 12"),
  ],
)
def test_impossible_windows(size, window, overlap, options, message):
  with pytest.raises(UserError, match=message):
    window_starts(size, window, overlap, **options)


def test_ramps_cross_fade_linearly(z, cond):
  # Two windows sharing two frames: shares 2/3, 1/3 and 1/3, 2/3.
  first = lambda z, log_snr, cond: predict(
    "x0", jnp.zeros_like(z) + cond.frames[:, :1], z, log_snr
  )
  frames = jnp.zeros((2, 10, 2, 3, 1)).at[:, 4:].set(1.0)
  z = jnp.zeros_like(frames)
  got = multi_diffusion(first, (0, 4), 6, weights="ramp")(
    z, LOG_SNR, cond(2, frames=frames)
  )
  want = [0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1]
  np.testing.assert_allclose(got.x0[1, :, 0, 0, 0], want, atol=1e-6)


def test_averaging_the_next_z_would_lose_variance():
  # The control of the test above: as in MultiDiffusion's own code, but with
  # noise per window, each window steps by itself and the results are averaged.
  grid, keys = time_grid(Cosine(), 256), sample_keys(range(4))

  def step(z, levels):
    number, log_snr_t, log_snr_s = levels
    total, count = jnp.zeros_like(z), np.zeros((10, 1, 1, 1))
    for i, start in enumerate(STARTS):
      frames = slice(start, start + WINDOW)
      out = Gaussian(0.0, STD)(z[:, frames], jnp.full(4, log_snr_t), None)
      noise = frame_noise(keys, 2 * number + i, WINDOW, SHAPE[2:])
      next_z = DDPM().step(out, z[:, frames], log_snr_t, log_snr_s, noise)
      total, count[frames] = total.at[:, frames].add(next_z), count[frames] + 1
    return total / count, None

  z = jax.random.normal(jax.random.key(0), SHAPE)
  levels = (jnp.arange(256), grid[:-1], grid[1:])
  shared, alone = variances(jax.jit(jax.lax.scan, static_argnums=0)(
    step, z, levels
  )[0])  # fmt: skip
  assert abs(alone / STD**2 - 1) < MONTE_CARLO + 0.03
  assert shared < 0.8 * alone
