import dataclasses

import numpy as np
import pytest

from lumiere_jax.evals.measures import displacement, frequency
from lumiere_jax.evals.scenes import DISPLACING
from lumiere_jax.toy_scenes.scenes import (
  MOTIONS,
  Description,
  Scene,
  Sprite,
  render,
)


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


def test_displacement_leaves_out_frames_without_the_object():
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


def test_what_keeps_no_time_has_no_frequency(rng):
  still = _draw("still")
  assert frequency(still, "blinking", 16.0) is None
  assert frequency(still, "swinging", 16.0) is None
  assert frequency(0 * still, "blinking", 16.0) is None
  # Swinging is no blinking, nor the other way round.
  assert frequency(_draw("swinging", rate=3.5), "blinking", 16.0) is None
  assert frequency(_draw("blinking", rate=3.5), "swinging", 16.0) is None
  # There or not at random; a place at random.
  there = rng.random(48) < 0.5
  flickering = still * there[:, None, None, None].astype(np.uint8)
  assert frequency(flickering, "blinking", 16.0) is None
  jumping = np.stack([np.roll(f, rng.integers(-6, 7), 1) for f in still])
  assert frequency(jumping, "swinging", 16.0) is None


def test_small_trembling_is_no_swinging():
  assert (
    frequency(_draw("swinging", rate=3.5, reach=(0.006, 0)), "swinging", 16.0)
    is None
  )


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
  scene = Scene(sprites=(small, large), background="black")
  video = render(scene, 48, 64)
  assert frequency(video, "swinging", 16.0) == pytest.approx(4.0, abs=0.12)
