"""Shapes and motions as rendered, and the held-out combinations."""

import dataclasses
import itertools

import numpy as np
import pytest

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.toy_scenes.captions import combinations, is_held_out
from lumiere_jax.toy_scenes.scenes import (
  COLOURS,
  FOLDS,
  MOTIONS,
  SHAPES,
  SIZES,
  Description,
  Scene,
  Sprite,
  coverage,
  pose,
  render,
)


def make_scene(motion, rate, **changes):
  """A red square at the centre."""
  words = Description(colour="red", shape="square", motion=motion, size="small")
  sprite = Sprite(
    description=words,
    centre=(0.5, 0.5),
    reach=(0.12, 0.12),
    radius=SIZES["small"],
    rate=rate,
    phase=0.3,
  )
  sprites = (dataclasses.replace(sprite, **changes),)
  return Scene(sprites=sprites, background="black")


def brightness(video):
  """Red over the black background, (t, h, w)."""
  return video[..., 0].astype(float) - video[0, 0, 0, 0]


def centroid(video):
  """(t, 2): (x, y) in fractions of the frame."""
  red = brightness(video)
  y, x = (np.arange(n) + 0.5 for n in red.shape[1:])
  sums = [(red * x).sum((1, 2)), (red * y[:, None]).sum((1, 2))]
  total = red.sum((1, 2))[:, None]
  return np.stack(sums, 1) / total / red.shape[2:0:-1]


def test_held_out_triples_are_a_latin_square():
  train, held_out = combinations("train"), combinations("held_out")
  every = itertools.product(COLOURS, SHAPES, MOTIONS)
  visible = {t for t in every if t[1] in FOLDS or t[2] != "spinning"}
  assert not set(train) & set(held_out)
  assert set(train) | set(held_out) == visible
  # Each shape and motion lacks one of seven colours in training.
  assert len(held_out) * 7 == len(visible)
  for pair in itertools.combinations(range(3), 2):
    of = lambda triples, pair=pair: {tuple(t[k] for k in pair) for t in triples}
    assert of(train) == of(visible)
  assert not any(map(is_held_out, train))
  assert all(map(is_held_out, held_out))


def test_pixels_are_square():
  square = brightness(render(make_scene("still", 0.0), 1, (60, 120)))[0] > 100
  assert np.ptp(np.nonzero(square), axis=1).tolist() == [9, 9]  # 60 * 0.161


@pytest.mark.parametrize(
  ("motion", "axis", "sign"),
  [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)],
)
def test_crossing_has_the_direction_of_the_caption(motion, axis, sign):
  scene = make_scene(motion, 0.2)
  steps = np.diff(centroid(render(scene, 8, 48)), axis=0)
  assert (sign * steps[:, axis] > 0.01).all()
  assert np.abs(steps[:, 1 - axis]).max() < 1e-3
  # Periodic: five seconds at 0.2 crossings per second.
  at = pose(scene.sprites[0], np.array([0.0, 5.0]))
  np.testing.assert_allclose([np.ptp(at.x), np.ptp(at.y)], 0, atol=1e-9)


def test_circling_bouncing_growing_and_spinning():
  path = centroid(render(make_scene("circling", 1.0), 16, 64)) - 0.5
  np.testing.assert_allclose(np.hypot(*path.T), 0.12, atol=2e-3)
  turn = np.diff(np.unwrap(np.arctan2(path[:, 1], path[:, 0])))
  np.testing.assert_allclose(turn, 2 * np.pi / 16, atol=0.03)
  bouncing = render(make_scene("bouncing", 1.0, phase=0.0), 17, 64)
  x, height = (0.5 - centroid(bouncing)).T
  np.testing.assert_allclose(x, 0, atol=1e-3)
  # Free fall: constant downward acceleration, floor at 0 and 1, top at 1/2.
  np.testing.assert_allclose(np.diff(height, 2)[:14], -1.92 / 256, atol=2e-3)
  np.testing.assert_allclose(
    height[[0, 8, 16]], [-0.12, 0.12, -0.12], atol=2e-3
  )
  for motion, sign in (("growing", 1), ("shrinking", -1)):
    area = brightness(render(make_scene(motion, 0.5), 16, 64)).sum((1, 2))
    assert (sign * np.diff(area) > 0).all()
  # A square is invariant under a quarter turn, but not an eighth.
  video = brightness(render(make_scene("spinning", 0.5), 9, 64))
  assert np.abs(video[8] - video[0]).max() < 3
  assert np.abs(video[4] - video[0]).max() > 100


@pytest.mark.parametrize("motion", ["blinking", "swinging"])
def test_fast_motions_do_not_alias(motion):
  ((low, high),) = MOTIONS[motion].rates.values()
  assert (low, high) == (3.0, 4.0)
  source = ProceduralSource(
    num_clips=40,
    num_frames=6,
    resolution=32,
    motions=(motion,),
    two_objects=0.0,
  )
  rates = [source.scene(k).sprites[0].rate for k in range(40)]
  assert low <= min(rates) < 3.2 < 3.8 < max(rates) <= high

  def loudest(rate, fps):
    video = render(make_scene(motion, rate), 5 * fps, 32, fps)
    mass = brightness(video).sum((1, 2))
    signal = mass if motion == "blinking" else centroid(video)[:, 0]
    spectrum = np.abs(np.fft.rfft(signal - signal.mean()))
    return np.fft.rfftfreq(len(signal), 1 / fps)[spectrum.argmax()]

  for rate, fps in itertools.product(np.linspace(low, high, 6), (16, 64)):
    assert abs(loudest(rate, fps) - rate) <= 0.11


AREAS = {
  "circle": np.pi * 0.95**2,
  "square": 1.4**2,
  "triangle": 3 * np.sqrt(3) / 4,
  "star": 5 * 0.45 * np.sin(np.pi / 5),
  "ring": np.pi * (0.99**2 - 0.57**2),
  "cross": 2 * 0.6 * 1.9 - 0.6**2,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_has_the_area_of_the_shape(shape):
  radius, angle = np.array([20.0, 8.0, 5.0]), np.array([0.0, 0.4, 1.1])
  x, y = np.array([0.2, 0.7, -0.4]), np.array([-0.1, 0.3, 0.5])
  drawn = coverage(shape, x, y, radius, angle, side=46, parts=4)
  assert 0 <= drawn.min() <= drawn.max() <= 1
  area = AREAS[shape] * radius**2
  np.testing.assert_allclose(drawn.sum((1, 2)), area, rtol=0.02)


def test_shapes_turn_clockwise_about_their_centre():
  zero = np.zeros(2)

  def turned(shape, angle):
    angles = np.array([0.0, angle])
    return coverage(shape, zero, zero, zero + 8, angles, side=20, parts=4)

  drawn = turned("triangle", np.pi / 2)
  np.testing.assert_allclose(drawn[1], np.rot90(drawn[0], -1), atol=0.02)
  assert FOLDS == {"square": 4, "triangle": 3, "star": 5, "cross": 4}
  for shape, fold in FOLDS.items():
    same = turned(shape, 2 * np.pi / fold)
    np.testing.assert_allclose(same[0], same[1], atol=1e-3)
