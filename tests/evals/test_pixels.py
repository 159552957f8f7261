import numpy as np
from PIL import Image
import pytest

from lumiere_jax.evals.measures import (
  bicubic,
  border_ratio,
  flicker,
  most_changed,
  psnr,
  shrunk,
)


def test_psnr_is_its_formula():
  real = np.full((2, 4, 4, 3), 100, np.uint8)
  assert psnr(real + np.uint8(5), real) == pytest.approx(20 * np.log10(255 / 5))
  one = real.copy()
  one[0, 0, 0, 0] = 196  # 96^2 over 96 bytes: a mean square of 96
  assert psnr(one, real) == pytest.approx(10 * np.log10(255**2 / 96))
  assert psnr(one, real) == psnr(real, one)  # bytes do not wrap around


def test_psnr_of_the_same_is_that_of_rounding(rng):
  real = rng.integers(0, 256, (8, 8, 3), np.uint8)
  assert psnr(real, real) == pytest.approx(58.92, abs=0.01)
  # Rounding makes this error.
  exact = rng.uniform(20, 230, 100_000)
  assert np.mean((np.rint(exact) - exact) ** 2) == pytest.approx(
    1 / 12, rel=0.02
  )


def test_shrinking_averages_blocks():
  video = np.zeros((1, 4, 4, 3), np.uint8)
  video[0, :2, :2, 0] = [[10, 20], [30, 41]]
  small = shrunk(video, 2)
  assert small.shape == (1, 2, 2, 3)
  assert small[0, 0, 0].tolist() == [25, 0, 0]
  assert not small[0, 1].any()


def test_bicubic_is_pillows(rng):
  low = rng.integers(0, 256, (2, 5, 7, 3), np.uint8)
  large = bicubic(low, 4)
  assert large.shape == (2, 20, 28, 3)
  expected = Image.fromarray(low[1]).resize((28, 20), Image.BICUBIC)
  np.testing.assert_array_equal(large[1], np.asarray(expected))


def _stepping(steps):
  """A video whose pixels change by these steps."""
  levels = np.cumsum([100, *steps]).astype(np.uint8)
  return np.broadcast_to(levels[:, None, None, None], (len(levels), 4, 4, 3))


def test_borders_are_where_windows_begin_and_end():
  # Windows 0-3 and 4-7: the one border lies between frames 3 and 4.
  apart = _stepping([1, 1, 1, 6, 1, 1, 1])
  assert border_ratio(apart, (0, 4), 4) == pytest.approx(6, rel=0.01)
  # Windows 0-4 and 3-7 share frames 3 and 4: borders before 3 and after 4.
  shared = _stepping([1, 1, 3, 1, 5, 1, 1])
  assert border_ratio(shared, (0, 3), 5) == pytest.approx(4, rel=0.01)
  assert border_ratio(shared, (0, 4), 4) < 1


def test_falls_count_as_rises_do():
  down = _stepping([-1, -1, -1, -6, -1, -1, -1])
  assert border_ratio(down, (0, 4), 4) == pytest.approx(6, rel=0.01)


def test_what_never_changes_has_no_seam():
  assert border_ratio(_stepping([0] * 7), (0, 4), 4) == 1
  assert border_ratio(_stepping([0, 0, 0, 1, 0, 0, 0]), (0, 4), 4) > 100


@pytest.mark.parametrize(("starts", "size"), [((0,), 8), (range(8), 1)])
def test_windows_without_borders_are_an_error(starts, size):
  with pytest.raises(ValueError, match="no borders"):
    border_ratio(_stepping([1] * 7), tuple(starts), size)


def test_flicker_is_of_the_background():
  video = np.full((4, 8, 8, 3), 100, np.uint8)
  video[:, :3, :3] = np.arange(0, 160, 40)[:, None, None, None]  # an object
  assert flicker(video) == 0
  video[::2, 3:] += np.uint8(6)
  assert flicker(video) == 3


def test_the_most_changed_frame_counts():
  region = np.zeros((3, 10, 3), np.uint8)
  region[1, :4, 2] = 30
  region[2, :2] = 255
  assert most_changed(region, 29) == 0.4
  assert most_changed(region, 30) == 0.2
  assert most_changed(region, 255) == 0
