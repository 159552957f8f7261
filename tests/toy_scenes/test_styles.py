"""Scenes in a style: still read, told from plain ones, and written as files."""

import itertools

import numpy as np
import pytest

from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.data.style_folder import draw, write_style_folder
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.reader import matches, read
from lumiere_jax.toy_scenes.scenes import BACKGROUNDS, COLOURS
from lumiere_jax.toy_scenes.styles import (
  STYLE,
  STYLES,
  add_style,
  remove_style,
  strength,
)

RIGHT = {"colour": True, "shape": True, "motion": True}


by_style = pytest.mark.parametrize("style", STYLES)


def _source(num_clips, resolution=32, num_frames=4, **options):
  return ProceduralSource(
    num_clips=num_clips,
    resolution=resolution,
    num_frames=num_frames,
    **options,
  )


def _pair(source, index, style):
  """A clip, plain and in a style, as floats."""
  scene = source.scene(index)
  styled = draw(
    scene, source.num_frames, source.resolution, source.fps, style=style
  )
  return source.clip(index).astype(float), styled.astype(float)


def _pixels(video):
  return np.clip(np.rint(video), 0, 255).astype(np.uint8)


@by_style
@pytest.mark.parametrize("resolution", [32, 64])
def test_styled_clips_are_read_as_plain_ones_are(resolution, style):
  source = _source(24, resolution, 80, seed=6, two_objects=0.3)
  for index in range(len(source)):
    _, styled = _pair(source, index, style)
    assert matches(_pixels(styled), source.caption(index)) == RIGHT


@by_style
def test_noise_changes_neither_what_is_read_nor_the_strength(style):
  source = _source(12, 32, 48, seed=7)
  rng = np.random.default_rng(0)
  for index in range(len(source)):
    plain, styled = _pair(source, index, style)
    noise = rng.normal(0, 8, styled.shape)
    assert matches(_pixels(styled + noise), source.caption(index)) == RIGHT
    assert strength(_pixels(styled + noise), style) > 0.9
    assert strength(_pixels(plain + noise), style) < 0.02


@by_style
def test_papers_shine_through_the_shapes(style):
  """Each pixel re-derived from how much of it the shape covers."""
  source, look = _source(30, two_objects=0.0), STYLES[style]
  for index in range(len(source)):
    scene = source.scene(index)
    plain, styled = _pair(source, index, style)
    behind = np.array(BACKGROUNDS[scene.background], float)
    colour = COLOURS[scene.sprites[0].description.colour] - behind
    cover = ((plain - behind) @ colour / (colour @ colour))[..., None]
    paper = np.array(look.papers[scene.background], float)
    before = COLOURS[scene.sprites[0].description.colour] - paper
    expected = paper + look.opacity * cover * before
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
def test_where_there_is_no_object_the_paper_tells(background, style):
  start, end = BACKGROUNDS[background], STYLES[style].papers[background]
  for share in np.linspace(0, 1, 5):
    colour = np.rint(np.array(start) + share * np.subtract(end, start))
    video = np.tile(colour.astype(np.uint8), (2, 8, 8, 1))
    assert strength(video, style) == pytest.approx(share, abs=0.02)
    assert read(video) == ()


@by_style
def test_what_is_neither_plain_nor_styled_counts_less(style):
  rng = np.random.default_rng(0)
  for odd in (
    np.zeros((2, 16, 16, 3), np.uint8) + np.uint8([255, 0, 255]),
    rng.integers(0, 256, (4, 32, 32, 3), np.uint8),
  ):
    assert 0 <= strength(odd, style) < 0.8


@by_style
def test_captions_say_the_style_and_are_read_without_it(style):
  source = _source(20)
  for index in range(len(source)):
    caption = source.caption(index)
    assert add_style(caption, style) == f"{caption} in {style} style"
    assert remove_style(add_style(caption, style)) == caption
    assert remove_style(caption) == caption


@by_style
def test_a_folder_of_pictures_is_a_data_set(tmp_path, style, capsys):
  folder = tmp_path / "new" / "pictures"
  write_style_folder(folder, style, count=40, resolution=32, seed=3)
  names = sorted(path.name for path in folder.iterdir())
  assert names == sorted(
    f"{style}-{k:05d}.{end}" for k in range(40) for end in ("png", "txt")
  )
  spec = ClipSpec(num_frames=1, fps=16.0, resolution=(32, 32))
  source = FilesSource.open(folder, [spec], cache=str(tmp_path / "cache"))
  assert "40" in capsys.readouterr().err
  assert len(source) == 40
  moving, strengths = 0, []
  for index in range(len(source)):
    (caption,) = source.captions(index)
    assert caption.endswith(f" in {style} style")
    things, _ = parse_caption(remove_style(caption))
    moving += things[0].motion is not None
    picture = source.clip(index)
    strengths.append(strength(picture, style))
    if things[0].motion is None:  # others may be out of the frame just then
      assert matches(picture, remove_style(caption)) == {
        "colour": True,
        "shape": True,
      }
  assert 10 <= moving <= 30
  assert min(strengths) > 0.8
  assert np.mean(strengths) > 0.98


def test_folders_depend_on_the_seed_alone(tmp_path):
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    write_style_folder(tmp_path / name, count=6, seed=seed)
  files = lambda name: [
    path.read_bytes() for path in sorted((tmp_path / name).iterdir())
  ]
  assert files("a") == files("b")
  pairs = zip(files("a"), files("c"), strict=True)
  assert all(a != c for a, c in itertools.islice(pairs, 0, None, 2))
  first = read_image(tmp_path / "a" / f"{STYLE}-00000.png")
  assert first.shape == (32, 32, 3)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
  (tmp_path / "cat.png").write_bytes(b"a cat")
  with pytest.raises(UserError, match="is there already; name a new folder"):
    write_style_folder(tmp_path, count=2)
  assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]
  with pytest.raises(UserError, match="num_clips is 0; make it 1 or more"):
    write_style_folder(tmp_path / "none", count=0)
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: add_style("a cat", "pastle"), 'did you mean "pastel"'),
    (lambda: strength(np.zeros((1, 8, 8, 3), np.uint8), "x"), "not one of"),
    (lambda: strength(np.zeros((8, 8, 3), np.uint8)), "video is"),
    (lambda: strength(np.zeros((1, 8, 8, 3))), "video is float64"),
  ],
)
def test_what_cannot_be_used_is_named(call, words):
  with pytest.raises(UserError, match=words) as error:
    call()
  assert "\n" not in str(error.value)
