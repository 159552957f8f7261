"""Styled scenes: recognised like plain ones, with a measurable strength."""

import numpy as np
import pytest

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.data.style_folder import render_style
from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.reader import matches, read
from lumiere_jax.toy_scenes.scenes import BACKGROUNDS, COLOURS
from lumiere_jax.toy_scenes.styles import (
  STYLES,
  add_style,
  remove_style,
  strength,
)

RIGHT = {"colour": True, "shape": True, "motion": True}
by_style = pytest.mark.parametrize("style", STYLES)


def _source(num_clips, resolution=32, num_frames=4, **options):
  return ProceduralSource(
    num_clips=num_clips, resolution=resolution, num_frames=num_frames, **options
  )


def _pair(source, index, style):
  """A clip, plain and in a style, as floats."""
  scene = source.scene(index)
  styled = render_style(
    scene, source.num_frames, source.resolution, source.fps, style=style
  )
  return source.clip(index).astype(float), styled.astype(float)


def _pixels(video):
  return np.clip(np.rint(video), 0, 255).astype(np.uint8)


@by_style
@pytest.mark.parametrize("resolution", [32, 64])
def test_styled_clips_are_read_like_plain_ones(resolution, style):
  """Noise affects neither reading nor strength."""
  source = _source(24, resolution, 80, seed=6, two_objects=0.3)
  rng = np.random.default_rng(0)
  for index in range(len(source)):
    plain, styled = _pair(source, index, style)
    assert matches(_pixels(styled), source.caption(index)) == RIGHT
    if index % 2:
      noise = rng.normal(0, 8, styled.shape)
      noisy = _pixels(styled + noise)
      assert matches(noisy, source.caption(index)) == RIGHT
      assert strength(noisy, style) > 0.9
      assert strength(_pixels(plain + noise), style) < 0.02


@by_style
def test_shapes_are_translucent(style):
  """Re-derives each pixel from its coverage."""
  source, target = _source(30, two_objects=0.0), STYLES[style]
  for index in range(len(source)):
    scene = source.scene(index)
    plain, styled = _pair(source, index, style)
    behind = np.array(BACKGROUNDS[scene.background], float)
    colour = COLOURS[scene.sprites[0].description.colour] - behind
    cover = ((plain - behind) @ colour / (colour @ colour))[..., None]
    background = np.array(target.backgrounds[scene.background], float)
    contrast = COLOURS[scene.sprites[0].description.colour] - background
    expected = background + target.opacity * cover * contrast
    np.testing.assert_allclose(styled, expected, atol=2.5)


@by_style
@pytest.mark.parametrize("resolution", [32, 64])
def test_strength_is_the_share_of_the_style_in_a_blend(resolution, style):
  source = _source(40, resolution, 3, seed=8, two_objects=0.3)
  shares = np.linspace(0, 1, 9)
  for index in range(len(source)):
    plain, styled = _pair(source, index, style)
    blends = [_pixels(plain + x * (styled - plain)) for x in shares]
    strengths = [strength(blend, style) for blend in blends]
    assert strengths[0] == 0
    assert (np.diff(strengths) > 0).all()
    np.testing.assert_allclose(strengths, shares, atol=0.03)


@by_style
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_without_objects_the_background_gives_the_strength(background, style):
  start, end = BACKGROUNDS[background], STYLES[style].backgrounds[background]
  for share in np.linspace(0, 1, 5):
    colour = np.rint(np.array(start) + share * np.subtract(end, start))
    video = np.tile(colour.astype(np.uint8), (2, 8, 8, 1))
    assert strength(video, style) == pytest.approx(share, abs=0.02)
    assert read(video) == ()


@by_style
def test_other_videos_have_a_lower_strength(style):
  magenta = np.zeros((2, 16, 16, 3), np.uint8) + np.uint8([255, 0, 255])
  noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
  for odd in (magenta, noise):
    assert 0 <= strength(odd, style) < 0.8


@by_style
def test_styles_in_captions(style):
  source = _source(20)
  for index in range(len(source)):
    caption = source.caption(index)
    assert add_style(caption, style) == f"{caption} in {style} style"
    assert remove_style(add_style(caption, style)) == caption
    assert remove_style(caption) == caption


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: add_style("a cat", "pastle"), 'did you mean "pastel"'),
    (lambda: strength(np.zeros((1, 8, 8, 3), np.uint8), "x"), "not one of"),
    (lambda: strength(np.zeros((8, 8, 3), np.uint8)), "video is"),
  ],
)
def test_unusable_arguments(call, words):
  with pytest.raises(UserError, match=words) as error:
    call()
  assert "\n" not in str(error.value)


@by_style
def test_noise_affects_neither_reading_nor_strength(style):
  source = _source(12, 32, 48, seed=7)
  rng = np.random.default_rng(0)
  for index in range(len(source)):
    plain, styled = _pair(source, index, style)
    noise = rng.normal(0, 8, styled.shape)
    assert matches(_pixels(styled + noise), source.caption(index)) == RIGHT
    assert strength(_pixels(styled + noise), style) > 0.9
    assert strength(_pixels(plain + noise), style) < 0.02
