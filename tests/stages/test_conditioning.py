"""Builders of conditioning against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.schedules import Cosine
from lumiere_jax.models.config import LOW_RESOLUTION as ALIGNMENTS
from lumiere_jax.stages import conditioning


def torchs_bilinear(picture, size, align_corners):
  """torch's upsample_bilinear2d of (h, w), from its source, pixel by pixel."""

  def source(there, old, new):
    if align_corners:
      place = there * (old - 1) / (new - 1) if new > 1 else 0.0
    else:
      place = max((there + 0.5) * old / new - 0.5, 0.0)
    first = int(place)
    second = first + (first < old - 1)
    return first, second, place - first

  out = np.empty(size)
  for y, x in np.ndindex(*size):
    y0, y1, v = source(y, picture.shape[0], size[0])
    x0, x1, u = source(x, picture.shape[1], size[1])
    above = (1 - u) * picture[y0, x0] + u * picture[y0, x1]
    below = (1 - u) * picture[y1, x0] + u * picture[y1, x1]
    out[y, x] = (1 - v) * above + v * below
  return out


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("size", [(9, 13), (6, 10), (12, 40), (3, 5)])
def test_enlarging_follows_torch(rng, alignment, size):
  video = rng.standard_normal((1, 2, 3, 5, 3)).astype(np.float32)
  out = np.asarray(conditioning.enlarge(jnp.asarray(video), size, alignment))
  assert out.shape == (1, 2, *size, 3)
  for t, c in np.ndindex(2, 3):
    expected = torchs_bilinear(
      video[0, t, :, :, c].astype(np.float64), size, alignment == "corners"
    )
    np.testing.assert_allclose(out[0, t, :, :, c], expected, atol=1e-6)


@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_half_pixel_alignment_moves_nothing(upscale):
  """A slope stays where it is, but for the edges, whose pixels repeat; kept
  corners move it by up to (upscale - 1) / 2 pixels."""
  n = 16 * upscale
  row = jnp.arange(float(n))[:, None]
  slope = jnp.broadcast_to(row, (1, 1, n, n, 1))
  low = conditioning.shrink(slope, upscale)
  moved = lambda alignment: np.abs(
    conditioning.enlarge(low, (n, n), alignment) - slope
  )[0, 0, 0, upscale:-upscale, 0].max()
  assert moved("half_pixel") < 1e-4
  farthest = moved("corners")
  assert 0.8 * (upscale - 1) / 2 < farthest < (upscale - 1) / 2


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("upscale", [2, 8])
def test_conditioning_of_crops_is_cropped_conditioning(rng, alignment, upscale):
  """At their borders too, where the frame has pixels beyond the crop."""
  h, w, size = 6 * upscale, 8 * upscale, 3 * upscale
  video = jnp.asarray(rng.uniform(-1, 1, (16, 2, h, w, 3)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 16)
  crops = conditioning.random_crops(keys, (h, w), size, upscale)
  assert len(set(map(tuple, np.asarray(crops.corners).tolist()))) > 8
  low = conditioning.shrink(video, upscale)
  whole = conditioning.enlarge(low, (h, w), alignment)
  alone = conditioning.enlarge(low, (h, w), alignment, crops)
  assert alone.shape == (16, 2, size, size, 3)
  np.testing.assert_allclose(alone, crops.cut(whole), atol=1e-6)


def test_shrinking_averages_and_undoes_repetition(rng):
  video = rng.standard_normal((2, 2, 4, 6, 3)).astype(np.float32)
  out = np.asarray(conditioning.shrink(jnp.asarray(video), 2))
  np.testing.assert_allclose(
    out[1, 0, 1, 2], video[1, 0, 2:4, 4:6].mean((0, 1)), atol=1e-6
  )
  large = video.repeat(2, axis=2).repeat(2, axis=3)
  np.testing.assert_allclose(
    conditioning.shrink(jnp.asarray(large), 2), video, atol=1e-6
  )


def test_low_resolution_frames_are_noised(rng):
  low = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 3)), jnp.float32)
  noise = jnp.asarray(rng.standard_normal((2, 3, 8, 8, 3)), jnp.float32)
  level = jnp.array([0.0, 0.5])
  out = conditioning.low_resolution_frames(
    low, (8, 8), "half_pixel", Cosine(), level, noise
  )
  clean = conditioning.enlarge(low, (8, 8), "half_pixel")
  np.testing.assert_allclose(out[0], clean[0], atol=5e-3)
  # cosine schedule, t = 1/2: alpha = sigma = sqrt(1/2)
  np.testing.assert_allclose(
    out[1], (clean[1] + noise[1]) / np.sqrt(2.0), atol=1e-5
  )


def test_crops_are_cut_from_the_clip_on_the_grid():
  h = w = 8
  position = jnp.arange(h * w, dtype=jnp.float32).reshape(1, 1, h, w, 1)
  video = jnp.broadcast_to(position, (64, 2, h, w, 3))
  keys = jax.random.split(jax.random.key(0), 64)
  drawn = conditioning.random_crops(keys, (h, w), 4, 2)
  crops = drawn.cut(video)
  assert crops.shape == (64, 2, 4, 4, 3)
  assert set(np.asarray(drawn.corners).ravel().tolist()) == {0, 2, 4}
  for crop, (y, x) in zip(crops, drawn.corners, strict=True):
    expected = video[0, :, y : y + 4, x : x + 4]  # same for every frame
    np.testing.assert_array_equal(crop, expected)
  assert conditioning.random_crops(keys, (h, w), 0, 2) is None


def test_masked_frames(rng):
  video = rng.standard_normal((1, 2, 3, 4, 3)).astype(np.float32)
  mask = rng.integers(2, size=(1, 2, 3, 4, 1)).astype(np.float32)
  out = np.asarray(conditioning.masked_frames(video, mask))
  assert out.shape == (1, 2, 3, 4, 4)
  given = mask[..., 0] == 1
  np.testing.assert_array_equal(out[given][:, :3], video[given])
  assert not out[~given].any()
  np.testing.assert_array_equal(out[..., 3:], mask)


def test_noise_of_a_sample_depends_on_its_key_alone():
  keys = jax.random.split(jax.random.key(3), 4)
  whole = conditioning.noise_like(jnp.zeros((4, 2, 3, 3, 3)), keys)
  alone = conditioning.noise_like(jnp.zeros((1, 2, 3, 3, 3)), keys[2:3])
  np.testing.assert_array_equal(whole[2], alone[0])
  assert abs(float(whole.std()) - 1) < 0.2


def test_pixels_survive_the_way_to_float_and_back():
  pixels = jnp.arange(256, dtype=jnp.uint8)
  video = conditioning.to_float(pixels)
  assert (float(video.min()), float(video.max())) == (-1.0, 1.0)
  np.testing.assert_array_equal(conditioning.to_uint8(video), pixels)
  beyond = conditioning.to_uint8(jnp.array([-3.0, 3.0, 0.0]))
  np.testing.assert_array_equal(beyond, [0, 255, 128])


def test_out_of_range_values_are_clipped():
  video = jnp.array([-3.0, 3.0, 0.0]).reshape(1, 1, 1, 1, 3)
  np.testing.assert_array_equal(
    np.asarray(conditioning.to_uint8(video)).ravel(), [0, 255, 128]
  )
