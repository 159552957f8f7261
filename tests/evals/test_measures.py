import dataclasses

import numpy as np
from PIL import Image
import pytest

from lumiere_jax.evals.measures import (
  bicubic,
  border_ratio,
  displacement,
  flicker,
  frequency,
  most_changed,
  psnr,
  shrunk,
)
from lumiere_jax.evals.scenes import DISPLACING
from lumiere_jax.toy_scenes.scenes import (
  MOTIONS,
  Description,
  Scene,
  Sprite,
  render,
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


def _ratio(steps, starts=(0, 4), size=4):
  return border_ratio(_stepping(steps), starts, size)


def test_borders_are_where_windows_begin_and_end():
  # Windows 0-3 and 4-7: the one border lies between frames 3 and 4.
  assert _ratio([1, 1, 1, 6, 1, 1, 1]) == pytest.approx(6, rel=0.01)
  assert _ratio([-1, -1, -1, -6, -1, -1, -1]) == pytest.approx(6, rel=0.01)
  # Windows 0-4 and 3-7 share frames 3 and 4: borders before 3 and after 4.
  shared = [1, 1, 3, 1, 5, 1, 1]
  assert _ratio(shared, (0, 3), 5) == pytest.approx(4, rel=0.01)
  assert _ratio(shared) < 1
  assert _ratio([0] * 7) == 1
  assert _ratio([0, 0, 0, 1, 0, 0, 0]) > 100


@pytest.mark.parametrize(("starts", "size"), [((0,), 8), (range(8), 1)])
def test_windows_without_borders_are_an_error(starts, size):
  with pytest.raises(ValueError, match="no borders"):
    _ratio([1] * 7, tuple(starts), size)


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


def _draw(motion, side=32, frames=48, fps=16.0, **changes):
  words = Description(colour="red", shape="square", motion=motion)
  values = {
    "description": words,
    "centre": (0.5, 0.5),
    "reach": MOTIONS[motion].reach,
    "radius": 0.17,
    "rate": 0.0,
    "phase": 0.1,
  }
  sprite = Sprite(**(values | changes))
  scene = Scene(sprites=(sprite,), background="black")
  return render(scene, frames, side, fps)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_displacement_is_in_pixels_of_32(side):
  """Half of the frames show it 6/32 of the frame away."""
  at = lambda x: _draw("still", side, 8, centre=(x, 0.5))
  first, second = at(0.4), at(0.4 + 6 / 32)
  video = np.concatenate([first, second])
  assert displacement(video) == pytest.approx(3.0, abs=0.1)
  assert displacement(first) == 0
  assert displacement(np.zeros_like(first)) == 0


def test_displacement_skips_frames_without_the_object():
  away = _draw("still", frames=8, centre=(0.7, 0.5))
  video = np.concatenate([_draw("still", frames=8), away, 0 * away])
  assert displacement(video) == pytest.approx(0.2 * 32 / 2, abs=0.1)


def test_displacing_motions_are_those_that_move_the_middle():
  for name, motion in MOTIONS.items():
    low, high = next(iter(motion.rates.values()))
    video = _draw(
      name, rate=(low + high) / 2, phase=sum(motion.start) / 2, frames=80
    )
    assert (displacement(video) > 2) == (name in DISPLACING), name


@pytest.mark.parametrize("rate", [1.0, 2.4, 3.0, 3.7, 4.0, 5.0])
@pytest.mark.parametrize("motion", ["blinking", "swinging"])
def test_the_frequency_is_that_of_the_scene(motion, rate):
  video = _draw(motion, rate=rate)
  assert frequency(video, motion, 16.0) == pytest.approx(rate, abs=0.12)
  assert frequency(video, motion, 8.0) == pytest.approx(rate / 2, abs=0.06)


def test_videos_without_rhythm_have_no_frequency(rng):
  still = _draw("still")
  there = rng.random(48) < 0.5
  flickering = still * there[:, None, None, None].astype(np.uint8)
  jumping = np.stack([np.roll(f, rng.integers(-6, 7), 1) for f in still])
  for motion, video in (
    ("blinking", still),
    ("blinking", 0 * still),
    ("blinking", flickering),
    ("blinking", _draw("swinging", rate=3.5)),
    ("swinging", still),
    ("swinging", jumping),
    ("swinging", _draw("blinking", rate=3.5)),
    ("swinging", _draw("swinging", rate=3.5, reach=(0.006, 0))),  # a tremble
  ):
    assert frequency(video, motion, 16.0) is None, motion


def test_the_largest_object_counts():
  words = Description(colour="blue", shape="circle", motion="swinging")
  small = Sprite(
    description=words,
    centre=(0.2, 0.15),
    reach=(0.06, 0),
    radius=0.08,
    rate=3.0,
    phase=0.0,
  )
  large = dataclasses.replace(
    small,
    description=dataclasses.replace(words, colour="red"),
    centre=(0.5, 0.6),
    radius=0.17,
    rate=4.0,
  )
  video = render(Scene(sprites=(small, large), background="black"), 48, 64)
  assert frequency(video, "swinging", 16.0) == pytest.approx(4.0, abs=0.12)
