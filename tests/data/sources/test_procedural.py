"""Procedural clips: a pure function of their arguments, with captions."""

import dataclasses
import pickle

import numpy as np
import pytest

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.captions import combinations, parse_caption
from lumiere_jax.toy_scenes.scenes import COLOURS, MOTIONS, SHAPES, SIZES, pose


def _source(**changes):
  sizes = {"num_clips": 300, "num_frames": 6, "resolution": 32}
  return ProceduralSource(**(sizes | changes))


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


def test_rng_changes_the_phase_of_motions():
  source = _source(motions=("left", "bouncing", "spinning", "swinging"))
  rng = lambda: np.random.default_rng(5)
  np.testing.assert_array_equal(source.clip(3, rng()), source.clip(3, rng()))
  for k in range(20):
    assert not np.array_equal(source.clip(k, rng()), source.clip(k))


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (130, 70), (8, 8)])
def test_any_size(size):
  clip = _source(num_frames=3, resolution=size).clip(1)
  assert (clip.shape, clip.dtype) == ((3, *size, 3), np.uint8)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_splits_show_their_own_triples(split):
  source = _source(split=split)
  words = [s.description for k in range(300) for s in source.scene(k).sprites]
  shown = {(word.colour, word.shape, word.motion) for word in words}
  assert shown <= set(combinations(split))


@pytest.mark.parametrize("resolution", [64, 32, 16])
def test_a_scene_is_the_same_at_every_resolution(resolution):
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


def test_captions_describe_the_scene_and_parse_back():
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


def test_first_frames_show_all_sprites_and_they_never_overlap():
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
    ({"moments": 2.0}, "moments is 2"),
    ({"colours": ("red",)}, "two_objects is 0.25; make it 0"),
    ({"shapes": ("ring",), "motions": ("spinning",)}, "give more names"),
  ],
)
def test_unusable_values_are_named(changes, message):
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


def test_moments_are_frames_of_moving_scenes_with_their_captions():
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
  assert elsewhere > 10  # Static sprites look the same.
  half = _source(num_frames=1, moments=0.5, two_objects=0.0)
  says = [half.caption(k) == clips.caption(k) for k in range(200)]
  assert 70 < sum(says) < 130


def test_blinking_changes_at_least_six_times_a_second():
  source = _source(motions=("blinking",), two_objects=0.0, num_frames=80)
  for index in range(20):
    video = source.clip(index).astype(int)
    there = np.abs(video - video[:, :1, :1]).sum((1, 2, 3)) > 0
    assert there[0]
    assert np.count_nonzero(there[1:] != there[:-1]) >= 6 * 79 // 16
    assert 0.35 < there.mean() < 0.65
