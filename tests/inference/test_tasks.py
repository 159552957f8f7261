"""What each task tells the stages, and what is put back; no network runs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs import ssr
from lumiere_jax.errors import UserError
from lumiere_jax.inference import pipeline as pipelines
from lumiere_jax.inference.compositing import composite
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import Style
from lumiere_jax.stages.conditioning import MaskedVideo, to_float, to_uint8
from tests.inference.fakes import replace_networks, tiny_pipeline

PROMPT = "a red circle moving left on a black background"
FRAMES, SIDE, SMALL = 16, 32, 16
SHORT = Settings(steps=4, num_frames=FRAMES)


@pytest.fixture
def asked(monkeypatch):
  """What the stages are asked for."""
  return replace_networks(monkeypatch)


@pytest.fixture(scope="module")
def pipeline():
  return tiny_pipeline()


@pytest.fixture
def video(rng):
  return rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)


def halved(video):
  """In [-1, 1], each pixel the mean of 2x2."""
  video = np.asarray(to_float(jnp.asarray(video)))
  rows = video[..., ::2, :, :] + video[..., 1::2, :, :]
  return (rows[..., ::2, :] + rows[..., 1::2, :]) / 4


def told(call):
  """(masked video, mask) that a base was told."""
  frames = np.asarray(call["cond"].frames)
  return frames[..., :3], frames[..., 3]


def test_a_video_begins_with_its_picture(pipeline, asked, video):
  made = pipeline.image_to_video(PROMPT, video[0], settings=SHORT)
  assert made.shape == video.shape
  np.testing.assert_array_equal(made[0], video[0])
  assert (made[1:] != video[0]).mean() > 0.9
  pixels, mask = told(asked[0])
  assert mask[0, 0].all()
  assert not mask[0, 1:].any()
  np.testing.assert_allclose(pixels[0, 0], halved(video[0]), atol=1e-6)
  assert not pixels[0, 1:].any()
  assert [c["config"].video.resolution for c in asked] == [(16, 16), (32, 32)]


def test_it_may_end_with_one_and_be_left_as_made(pipeline, asked, video):
  ends = {"last_image": video[-1], "settings": SHORT}
  made = pipeline.image_to_video(PROMPT, None, **ends)
  np.testing.assert_array_equal(made[-1], video[-1])
  _, mask = told(asked[0])
  assert mask[0].any((1, 2)).tolist() == [False] * 15 + [True]
  as_made = pipeline.image_to_video(PROMPT, None, composited=False, **ends)
  assert (as_made[-1] != video[-1]).mean() > 0.9


def test_inpainting_changes_nothing_else(pipeline, asked, video):
  mask = np.zeros((SIDE, SIDE), bool)
  mask[9:20, 4:13] = True
  made = pipeline.inpaint(PROMPT, video, mask, settings=SHORT)
  np.testing.assert_array_equal(made[:, ~mask], video[:, ~mask])
  assert (made[:, mask] != video[:, mask]).mean() > 0.9
  pixels, given = told(asked[0])
  # A pixel of the base is given if all four pixels it stands for are.
  anew = np.zeros((SMALL, SMALL), bool)
  anew[4:10, 2:7] = True
  np.testing.assert_array_equal(given[0, 3] == 0, anew)
  assert not pixels[0][:, anew].any()


def test_edges_fade_within_what_is_made(pipeline, asked, video):
  del asked
  mask = np.zeros((SIDE, SIDE), bool)
  mask[8:24, 8:24] = True
  hard, soft = (
    pipeline.inpaint(
      PROMPT, np.zeros_like(video), mask, feather=width, settings=SHORT
    )
    for width in (0, 4)
  )
  np.testing.assert_array_equal(soft[:, ~mask], 0)
  row = soft[5, 16, :, 0].astype(int)
  assert hard[5, 16, 8, 0] == hard[5, 16, 16, 0]
  assert (np.diff(row[7:13]) > 0).all()
  assert row[13] == hard[5, 16, 16, 0]


def test_outpainting_keeps_the_middle(pipeline, asked, video, capsys):
  small = video[:, :, 8:24]  # 16 wide, 32 high
  made = pipeline.outpaint(PROMPT, small, (8, 0, 8, 0), settings=SHORT)
  np.testing.assert_array_equal(made[:, :, 8:24], small)
  _, given = told(asked[0])
  assert given[0, 0].any(0).tolist() == [False] * 4 + [True] * 8 + [False] * 4
  assert not capsys.readouterr().err.count("notice")


def test_cinemagraphs_move_in_their_region_alone(pipeline, asked, video):
  moves = np.zeros((SIDE, SIDE), bool)
  moves[:10] = True
  made = pipeline.cinemagraph(PROMPT, video[0], moves, settings=SHORT)
  np.testing.assert_array_equal(made[:, ~moves], made[:1, ~moves].repeat(16, 0))
  np.testing.assert_array_equal(made[0], video[0])
  assert (made[1:, moves] != video[0][moves]).mean() > 0.9
  _, given = told(asked[0])
  assert given[0, 0].all()
  assert not given[0, 1:, :5].any()
  assert given[0, :, 5:].all()


def test_sdedit_starts_from_the_video(pipeline, asked, video):
  pipeline.video_to_video(PROMPT, video, strength=0.5, settings=SHORT)
  start, levels = asked[0]["start"], asked[0]["log_snrs"]
  # The noise of cosine time 1/2, whatever the grid.
  assert levels[0] == pytest.approx(0, abs=1e-5)
  assert np.all(np.diff(levels) > 0)
  np.testing.assert_allclose(start[0], halved(video), atol=1e-6)
  assert asked[1]["start"] is None


def test_long_videos_go_on_from_their_last_frames(pipeline, asked, video):
  made = pipeline.extend(PROMPT, video, times=2, context=6, settings=SHORT)
  assert len(made) == 16 + 2 * 10
  np.testing.assert_array_equal(made[:16], video)
  first, second, last = asked
  pixels, mask = told(first)
  assert mask[0].any((1, 2)).tolist() == [True] * 6 + [False] * 10
  np.testing.assert_allclose(pixels[0, :6], halved(video)[-6:], atol=1 / 127)
  # The second is told the end of what the first made.
  ramp = np.linspace(-0.5, 0.5, 16)[-6:]
  np.testing.assert_allclose(told(second)[0][0, :6, 3, 3, 0], ramp, atol=1e-2)
  assert last["config"].video.upscale == 2
  assert last["num_frames"] == 36
  assert last["windows"].size == ssr.TINY.data.num_frames


def test_super_resolution_alone_takes_any_size(pipeline, asked, rng):
  clip = rng.integers(0, 256, (13, 20, 37, 3), np.uint8)
  made = pipeline.super_resolve(clip, settings=SHORT)
  assert made.shape == (13, 40, 74, 3)
  (call,) = asked
  assert call["config"].video.resolution == (40, 74)
  assert call["rows"].size == call["columns"].size == SIDE
  assert call["windows"].size == 8
  tiny = pipeline.super_resolve(clip[:1, :5, :9], settings=SHORT)
  assert tiny.shape == (1, 10, 18, 3)  # padded for the network, then cut
  assert asked[1]["num_frames"] == 2
  assert asked[1]["config"].video.resolution == (10, 18)
  with pytest.raises(UserError, match="needs a super-resolution stage"):
    pipeline.base_alone.super_resolve(clip, settings=SHORT)


def test_panoramas_are_seen_in_windows(pipeline, asked):
  made = pipeline.panorama(PROMPT, width=80, settings=SHORT)
  assert made.shape == (16, 32, 80, 3)
  assert [c["config"].video.resolution for c in asked] == [(16, 40), (32, 80)]
  assert [c["columns"].size for c in asked] == [16, 32]
  assert [c["rows"] for c in asked] == [None, None]


def test_a_conditional_base_is_needed(pipeline, video):
  alone = Pipeline(pipeline.text, pipeline.stages)
  with pytest.raises(UserError, match="has no pixel-conditioned base"):
    alone.image_to_video(PROMPT, video[0], settings=SHORT)


def test_inputs_of_other_sizes_are_resized_with_a_notice(
  pipeline, asked, video, capsys
):
  long = np.repeat(video, 2, axis=0)[:, :, :20]
  made = pipeline.video_to_video(PROMPT, long, settings=SHORT)
  assert made.shape == video.shape
  reported = capsys.readouterr().err
  assert "has 32 frames; the first 16 are used" in reported
  assert "is 20x32, resized and cropped at its centre to 32x32" in reported
  short = pipeline.video_to_video(PROMPT, video[:11], settings=SHORT)
  assert len(short) == 10
  assert "has 11 frames; the first 10 are used" in capsys.readouterr().err
  assert asked


VIDEO = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
MASK = np.zeros((SIDE, SIDE), bool)


@pytest.mark.parametrize(
  ("task", "inputs", "changes", "words"),
  [
    ("image_to_video", (None,), {}, "image is missing"),
    ("image_to_video", (VIDEO[0, ..., 0],), {}, "image is uint8"),
    ("inpaint", (VIDEO, MASK), {}, "marks nothing"),
    ("inpaint", (VIDEO, ~MASK), {}, "marks everything"),
    ("inpaint", (VIDEO, np.uint8(MASK)), {}, "mask is uint8"),
    ("inpaint", (VIDEO, np.eye(SIDE) > 0), {"feather": -1}, "feather=-1"),
    ("outpaint", (VIDEO, (0, 0, 0, 0)), {}, "adds nothing"),
    ("outpaint", (VIDEO, (-1, 4, 0, 0)), {}, "adds nothing"),
    ("video_to_video", (VIDEO[:1],), {}, "has 1 frames; give at least 2"),
    ("video_to_video", (np.float32(VIDEO),), {}, "video is float32"),
    ("video_to_video", (VIDEO,), {"strength": 0.0}, "is not in .0, 1"),
    ("video_to_video", (VIDEO,), {"strength": 1.5}, "is not in .0, 1"),
    ("video_to_video", (VIDEO,), {"strength": float("nan")}, "is not in .0, 1"),
    ("extend", (VIDEO,), {"context": 16}, "context=16 frames must be 1 to 15"),
    ("extend", (VIDEO,), {"context": 0}, "context=0"),
    ("extend", (VIDEO,), {"times": 0, "context": 6}, "times=0"),
    ("extend", (VIDEO[:3],), {"context": 6}, "has 3 frames"),
    ("panorama", (), {"width": 81}, "not a multiple of 2"),
  ],
)
def test_inputs_that_do_not_do(pipeline, asked, task, inputs, changes, words):
  with pytest.raises(UserError, match=words):
    getattr(pipeline, task)(PROMPT, *inputs, settings=SHORT, **changes)


def test_masks_of_videos_hold_their_last_frame(pipeline, asked, video):
  del asked
  mask = np.zeros((3, SIDE, SIDE), bool)
  mask[2, :4] = True
  made = pipeline.inpaint(PROMPT, video, mask, settings=SHORT)
  changed = (made != video).any((1, 2, 3))
  assert changed.tolist() == [False] * 2 + [True] * 14


def test_one_text_and_one_seed_are_one_video(pipeline, asked):
  of = lambda prompt, **how: pipeline.text_to_video(
    prompt, settings=SHORT, **how
  ).shape[:-3]
  assert of(PROMPT) == of(PROMPT, seed=3) == (16,)
  assert of([PROMPT]) == of(PROMPT, seed=[3]) == (1, 16)
  assert of(PROMPT, seed=[1, 2]) == of([PROMPT] * 2) == (2, 16)
  with pytest.raises(UserError, match="3 prompts and 2 seeds"):
    of([PROMPT] * 3, seed=[1, 2])
  assert asked


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("setings", 'image_to_video.*setings.*did you mean "settings"'),
    ("watch", "it is now 'on_progress'"),
    ("feather", "known: prompt, image, last_image, composited, seed"),
  ],
)
def test_unknown_options_are_errors(pipeline, asked, video, name, words):
  with pytest.raises(UserError, match=words):
    pipeline.image_to_video(PROMPT, video[0], **{name: SHORT})
  assert not asked


def test_compositing_puts_back_what_was_given_to_the_bit(rng):
  made, video = rng.integers(0, 256, (2, 2, 3, 8, 8, 3), np.uint8)
  mask = rng.random((3, 8, 8)) < 0.5
  given = MaskedVideo(video=video[0], mask=mask)
  for feather in (0, 3):
    out = composite(made, given, feather)
    for sample in out:
      np.testing.assert_array_equal(sample[mask], video[0][mask])
  np.testing.assert_array_equal(
    composite(made, given)[:, ~mask], made[:, ~mask]
  )


def test_given_pixels_of_a_smaller_stage_are_means(rng):
  video = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
  mask = np.ones((2, 8, 8), bool)
  mask[1, 3, 5] = False
  pixels, given = MaskedVideo(video=video, mask=mask).at((4, 4))
  assert given.shape == (2, 4, 4, 1)
  assert np.argwhere(given[..., 0] == 0).tolist() == [[1, 1, 2]]
  np.testing.assert_allclose(
    pixels[0, 0, 0], to_float(video[0, :2, :2]).mean((0, 1)), atol=1e-6
  )
  same, _ = MaskedVideo(video=video, mask=mask).at((8, 8))
  np.testing.assert_array_equal(to_uint8(same), video)


def test_a_style_is_blended_into_all_spatial_layers(pipeline, monkeypatch):
  """Of both bases; temporal layers keep their weights."""
  leaves = {"a": np.full(2, 3.0)}
  style = Style(path="wood", slot="base", leaves=leaves)
  monkeypatch.setattr(pipelines, "read_style", lambda path: style)
  weights = {"a": np.ones(2), "temporal_a": np.ones(3), "cond_in": np.ones(4)}
  stages = {
    name: dataclasses.replace(stage, params=weights)
    for name, stage in pipeline.stages.items()
  }
  conditional = lambda: stages["base"]
  plain = Pipeline(pipeline.text, stages, conditional=conditional)
  half = plain.styled("wood", 0.5)
  for stage in (half.stages["base"], half._pixel_conditioned().stages["base"]):
    np.testing.assert_array_equal(stage.params["a"], 2)
    for path in ("temporal_a", "cond_in"):
      assert stage.params[path] is weights[path]
  assert half.stages["ssr"].params is weights
