import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.captions import (
  combinations,
  is_held_out,
  parse_caption,
)
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


def _source(**changes):
  sizes = {"num_clips": 300, "num_frames": 6, "resolution": 32}
  return ProceduralSource(**(sizes | changes))


def _scene(motion, rate, shape="square", **changes):
  words = Description(colour="red", shape=shape, motion=motion, size="small")
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


def _red(video):
  """Brightness over the black background, (t, h, w)."""
  return video[..., 0].astype(float) - video[0, 0, 0, 0]


def _middle(video):
  """(t, 2): centroid (x, y) in fractions of the frame."""
  red = _red(video)
  y, x = (np.arange(n) + 0.5 for n in red.shape[1:])
  total = red.sum((1, 2))
  middle = [(red * x).sum((1, 2)), (red * y[:, None]).sum((1, 2))]
  return np.stack(middle, 1) / total[:, None] / red.shape[2:0:-1]


def _block_mean(video, block):
  t, h, w, c = video.shape
  blocks = video.reshape(t, h // block, block, w // block, block, c)
  return blocks.mean((2, 4))


def test_a_clip_is_a_function_of_seed_split_and_index():
  source = _source()
  later = pickle.loads(pickle.dumps(_source(num_clips=1000)))
  for index in (7, 0, 299):
    assert later.caption(index) == source.caption(index)
    np.testing.assert_array_equal(later.clip(index), source.clip(index))
  for other in (_source(seed=1), _source(split="held_out")):
    same = [other.caption(i) == source.caption(i) for i in range(100)]
    assert np.mean(same) < 0.05
  assert len({source.clip(i).tobytes() for i in range(100)}) == 100


def test_rng_only_restarts_the_motions():
  source = _source(motions=("left", "bouncing", "spinning", "swinging"))
  rng = lambda: np.random.default_rng(5)
  np.testing.assert_array_equal(source.clip(3, rng()), source.clip(3, rng()))
  moved = [
    not np.array_equal(source.clip(k, rng()), source.clip(k)) for k in range(20)
  ]
  assert all(moved)


@pytest.mark.parametrize("resolution", [64, 32, 16])
def test_a_scene_looks_the_same_at_every_resolution(resolution):
  for index in range(40):
    fine = _source(resolution=2 * resolution).clip(index)
    coarse = _source(resolution=resolution).clip(index)
    apart = np.abs(_block_mean(fine, 2) - coarse)
    assert apart.mean() < 0.1
    assert apart.max() < 12


def test_lengths_and_frame_rates_sample_one_motion():
  for index in range(20):
    clip = _source(num_frames=40).clip(index)
    first = _source(num_frames=1).clip(index)
    np.testing.assert_array_equal(clip[:1], first)
    double = _source(num_frames=80, fps=32).clip(index)
    np.testing.assert_array_equal(double[::2], clip)


def test_any_size_and_no_distortion():
  for size in [(24, 40), (40, 24), (130, 70), (8, 8)]:
    clip = _source(num_frames=3, resolution=size).clip(1)
    assert clip.shape == (3, *size, 3)
    assert clip.dtype == np.uint8
  square = _red(render(_scene("still", 0.0), 1, (60, 120)))[0] > 100
  assert np.ptp(np.nonzero(square), axis=1).tolist() == [9, 9]  # 60 * 0.161
  assert len(_source(num_clips=9)) == 9


def test_held_out_triples_are_never_trained_on():
  train, held_out = combinations("train"), combinations("held_out")
  every = itertools.product(COLOURS, SHAPES, MOTIONS)
  visible = {t for t in every if t[1] in FOLDS or t[2] != "spinning"}
  assert not set(train) & set(held_out)
  assert set(train) | set(held_out) == visible
  # A Latin square: each shape and motion lacks just one of seven colours.
  assert len(held_out) * 7 == len(visible)
  for pair in itertools.combinations(range(3), 2):
    of = lambda triples, pair=pair: {tuple(t[k] for k in pair) for t in triples}
    assert of(train) == of(visible)
  for split in ("train", "held_out"):
    source = _source(split=split)
    for sprite in itertools.chain(
      *(source.scene(k).sprites for k in range(300))
    ):
      words = sprite.description
      triple = words.colour, words.shape, words.motion
      assert is_held_out(triple) == (split == "held_out")
      assert triple in visible


def test_captions_say_the_scene_and_parse_back():
  source, silent = _source(), _source(num_frames=1)
  seen, two = set(), 0
  for index in range(300):
    scene = source.scene(index)
    words = tuple(sprite.description for sprite in scene.sprites)
    assert parse_caption(source.caption(index)) == (words, scene.background)
    quiet = tuple(
      dataclasses.replace(w, motion=None, speed=None) for w in words
    )
    assert parse_caption(silent.caption(index)) == (quiet, scene.background)
    seen |= {v for w in words for v in dataclasses.astuple(w)}
    two += len(words) == 2
  speeds = {"slowly", "quickly"}
  everything = {None, *COLOURS, *SHAPES, *MOTIONS, *SIZES, *speeds}
  assert seen == everything
  assert 45 < two < 105  # A quarter of 300, give or take four deviations.
  assert any("an orange" in source.caption(k) for k in range(300))
  with pytest.raises(UserError, match="small red ring"):
    parse_caption("a cat playing the piano")


@pytest.mark.parametrize(
  ("motion", "axis", "sign"),
  [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)],
)
def test_crossing_goes_where_the_caption_says(motion, axis, sign):
  steps = np.diff(_middle(render(_scene(motion, 0.2), 8, 48)), axis=0)
  assert (sign * steps[:, axis] > 0.01).all()
  assert np.abs(steps[:, 1 - axis]).max() < 1e-3
  # Five seconds at 0.2 crossings a second: back where it began.
  scene = _scene(motion, 0.2)
  x = pose(scene.sprites[0], np.array([0.0, 5.0]))
  np.testing.assert_allclose([np.ptp(x.x), np.ptp(x.y)], 0, atol=1e-9)


def test_circling_bouncing_growing_and_spinning():
  path = _middle(render(_scene("circling", 1.0), 16, 64)) - 0.5
  np.testing.assert_allclose(np.hypot(*path.T), 0.12, atol=2e-3)
  turn = np.diff(np.unwrap(np.arctan2(path[:, 1], path[:, 0])))
  np.testing.assert_allclose(turn, 2 * np.pi / 16, atol=0.03)
  height = 0.5 - _middle(render(_scene("bouncing", 1.0, phase=0.0), 17, 64))
  np.testing.assert_allclose(height[:, 0], 0, atol=1e-3)
  # Free fall: constant downward acceleration, floor at 0 and 1, top at 1/2.
  np.testing.assert_allclose(
    np.diff(height[:, 1], 2)[:14], -1.92 / 256, atol=2e-3
  )
  np.testing.assert_allclose(
    height[[0, 8, 16], 1], [-0.12, 0.12, -0.12], atol=2e-3
  )
  for motion, sign in (("growing", 1), ("shrinking", -1)):
    area = _red(render(_scene(motion, 0.5), 16, 64)).sum((1, 2))
    assert (sign * np.diff(area) > 0).all()
  # A square looks the same after a quarter turn, and not after an eighth.
  video = _red(render(_scene("spinning", 0.5), 9, 64))
  assert np.abs(video[8] - video[0]).max() < 3
  assert np.abs(video[4] - video[0]).max() > 100


@pytest.mark.parametrize("motion", ["blinking", "swinging"])
def test_fast_motions_are_several_periods_a_second_and_never_alias(motion):
  ((low, high),) = MOTIONS[motion].rates.values()
  assert (low, high) == (3.0, 4.0)
  source = _source(motions=(motion,), two_objects=0.0, num_clips=40)
  rates = [source.scene(k).sprites[0].rate for k in range(40)]
  assert low <= min(rates) < 3.2 < 3.8 < max(rates) <= high

  def loudest(rate, fps):
    video = render(_scene(motion, rate), 5 * fps, 32, fps)
    mass = _red(video).sum((1, 2))
    signal = mass if motion == "blinking" else _middle(video)[:, 0]
    spectrum = np.abs(np.fft.rfft(signal - signal.mean()))
    return np.fft.rfftfreq(len(signal), 1 / fps)[spectrum.argmax()]

  for rate in np.linspace(low, high, 6):
    for fps in (16, 64):
      assert abs(loudest(rate, fps) - rate) <= 0.11


def test_blinking_changes_at_least_six_times_a_second():
  source = _source(motions=("blinking",), two_objects=0.0, num_frames=80)
  for index in range(20):
    video = source.clip(index).astype(int)
    there = np.abs(video - video[:, :1, :1]).sum((1, 2, 3)) > 0
    assert there[0]
    assert np.count_nonzero(there[1:] != there[:-1]) >= 6 * 79 // 16
    assert 0.35 < there.mean() < 0.65


def test_first_frames_show_everything_and_sprites_keep_apart():
  source, seconds = _source(two_objects=0.6), np.arange(0, 12, 1 / 16)
  for index in range(300):
    sprites = source.scene(index).sprites
    paths = [pose(sprite, seconds) for sprite in sprites]
    for sprite, path in zip(sprites, paths, strict=True):
      start, stop = MOTIONS[sprite.description.motion].start
      assert start <= sprite.phase < stop or stop == start == sprite.phase
      crosses = sprite.description.motion in ("left", "right", "up", "down")
      shown = slice(0, 1 if crosses else None)
      for at in (path.x[shown], path.y[shown]):
        assert (at - sprite.radius >= 0).all()
        assert (at + sprite.radius <= 1).all()
      assert path.visible[0]
    if len(paths) == 2:
      apart = np.hypot(paths[0].x - paths[1].x, paths[0].y - paths[1].y)
      assert apart.min() > sum(sprite.radius for sprite in sprites) + 0.05
      assert len({s.description.colour for s in sprites}) == 2


def test_coverage_has_the_area_of_the_shape():
  areas = {
    "circle": np.pi * 0.95**2,
    "square": 1.4**2,
    "triangle": 3 * np.sqrt(3) / 4,
    "star": 5 * 0.45 * np.sin(np.pi / 5),
    "ring": np.pi * (0.99**2 - 0.57**2),
    "cross": 2 * 0.6 * 1.9 - 0.6**2,
  }
  assert set(areas) == set(SHAPES)
  radius, angle = np.array([20.0, 8.0, 5.0]), np.array([0.0, 0.4, 1.1])
  x, y = np.array([0.2, 0.7, -0.4]), np.array([-0.1, 0.3, 0.5])
  for shape, area in areas.items():
    drawn = coverage(shape, x, y, radius, angle, side=46, parts=4)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    np.testing.assert_allclose(drawn.sum((1, 2)), area * radius**2, rtol=0.02)


def test_shapes_turn_clockwise_about_their_middle():
  zero = np.zeros(2)
  quarter = np.array([0.0, np.pi / 2])
  drawn = coverage("triangle", zero, zero, zero + 8, quarter, side=20, parts=4)
  np.testing.assert_allclose(drawn[1], np.rot90(drawn[0], -1), atol=0.02)
  for shape, fold in {
    "square": 4,
    "triangle": 3,
    "star": 5,
    "cross": 4,
  }.items():
    angles = 2 * np.pi / fold * np.array([0.0, 1.0])
    same = coverage(shape, zero, zero, zero + 8, angles, side=20, parts=4)
    np.testing.assert_allclose(same[0], same[1], atol=1e-3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"colours": ("red", "gren")}, 'did you mean "green"'),
    ({"shapes": ()}, "shapes is empty"),
    ({"split": "test"}, "train, held_out"),
    ({"fps": 8.0}, "fps is 8.0; make it above 8"),
    ({"num_frames": 0}, "num_frames is 0; make it 1 or more"),
    ({"resolution": (32, 4)}, "resolution"),
    ({"seed": -1}, "seed"),
    ({"two_objects": 1.5}, "two_objects"),
    ({"colours": ("red",)}, "two_objects is 0.25; make it 0"),
    (
      {"shapes": ("ring",), "motions": ("spinning",)},
      "split is 'train'; make it another, or give more names",
    ),
  ],
)
def test_what_cannot_be_used_is_named(changes, message):
  with pytest.raises(UserError, match=message) as caught:
    _source(**changes)
  assert "\n" not in str(caught.value)


def test_small_vocabularies_and_bounds():
  demo = _source(
    colours=("red", "blue"),
    shapes=("circle",),
    motions=("left", "right"),
    fps=6,
  )
  words = {word for k in range(50) for word in demo.caption(k).split()}
  assert words.isdisjoint({"green", "square", "up"})
  assert _source(num_frames=1, fps=1.0).clip(0).shape == (1, 32, 32, 3)
  for index in (-1, 300):
    with pytest.raises(IndexError):
      demo.clip(index)


def test_moments_are_frames_of_moving_scenes_and_say_so():
  moments = _source(num_frames=1, moments=1.0, two_objects=0.0)
  clips = _source(num_frames=80, two_objects=0.0)
  still = _source(num_frames=1, two_objects=0.0)
  elsewhere = 0
  for index in range(20):
    assert moments.caption(index) == clips.caption(index)
    rng = lambda index=index: np.random.default_rng(index)
    picture = moments.clip(index, rng())
    elsewhere += not np.array_equal(picture, still.clip(index, rng()))
    np.testing.assert_array_equal(moments.clip(index), clips.clip(index)[:1])
  assert elsewhere > 10  # what stands still, or spins a ring, looks the same
  half = _source(num_frames=1, moments=0.5, two_objects=0.0)
  says = [half.caption(k) == clips.caption(k) for k in range(200)]
  assert 70 < sum(says) < 130
  with pytest.raises(UserError, match="moments is 2"):
    _source(num_frames=1, moments=2.0)
