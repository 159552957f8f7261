"""Builders of conditioning against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.schedule import Cosine
from lumiere_jax.pipelines import conditioning


def test_enlarging_keeps_corners_and_interpolates_linearly(rng):
  video = rng.standard_normal((1, 2, 3, 5, 3)).astype(np.float32)
  out = np.asarray(conditioning.enlarge(jnp.asarray(video), (9, 13)))
  assert out.shape == (1, 2, 9, 13, 3)
  np.testing.assert_allclose(
    out[..., [0, 0, -1, -1], [0, -1, 0, -1], :],
    video[..., [0, 0, -1, -1], [0, -1, 0, -1], :],
    atol=1e-6,
  )
  for c in range(3):  # row 4 of 9 falls on row 1 of 3
    expected = np.interp(
      np.linspace(0, 4, 13), np.arange(5), video[0, 1, 1, :, c]
    )
    np.testing.assert_allclose(out[0, 1, 4, :, c], expected, atol=1e-5)


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


def test_low_resolution_frames_are_noised_as_told(rng):
  low = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 3)), jnp.float32)
  noise = jnp.asarray(rng.standard_normal((2, 3, 8, 8, 3)), jnp.float32)
  level = jnp.array([0.0, 0.5])
  out = conditioning.low_resolution_frames(low, (8, 8), Cosine(), level, noise)
  clean = conditioning.enlarge(low, (8, 8))
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
  crops = conditioning.random_crops(keys, video, 4, 2)
  assert crops.shape == (64, 2, 4, 4, 3)
  corners = np.asarray(crops[:, 0, 0, 0, 0])
  rows, columns = corners // w, corners % w
  assert set(rows) == set(columns) == {0, 2, 4}
  for crop, row, column in zip(np.asarray(crops), rows, columns, strict=True):
    expected = np.asarray(video[0])[
      :, int(row) : int(row) + 4, int(column) : int(column) + 4
    ]
    np.testing.assert_array_equal(crop, expected)  # same for every frame
  assert conditioning.random_crops(keys, video, 0, 2) is video


def test_given_pixels_and_their_mask_stand_beside_each_other(rng):
  video = rng.standard_normal((1, 2, 3, 4, 3)).astype(np.float32)
  mask = rng.integers(2, size=(1, 2, 3, 4, 1)).astype(np.float32)
  out = np.asarray(conditioning.given_frames(video, mask))
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


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_pixels_survive_the_way_to_float_and_back(level):
  pixels = jnp.full((1, 1, 1, 1, 3), level, jnp.uint8)
  video = conditioning.to_float(pixels)
  assert -1.0 <= float(video.min()) <= float(video.max()) <= 1.0
  np.testing.assert_array_equal(conditioning.to_uint8(video), pixels)


def test_out_of_range_values_are_clipped():
  video = jnp.array([-3.0, 3.0, 0.0]).reshape(1, 1, 1, 1, 3)
  np.testing.assert_array_equal(
    np.asarray(conditioning.to_uint8(video)).ravel(), [0, 255, 128]
  )
