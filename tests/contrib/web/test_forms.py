"""Everything that can be filled in wrongly, each with its message."""

import dataclasses
from pathlib import Path
import re

import numpy as np
import pytest

from lumiere_jax.contrib.web.forms import (
  AS_TRAINED,
  check_edges,
  read,
  read_settings,
)
from lumiere_jax.contrib.web.labels import LABELS, words
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.tabs import ADVANCED, EDGES, TABS
from lumiere_jax.errors import UserError, VideoError, option
from lumiere_jax.inference.tasks import TASKS
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.options import options_of
from tests.contrib.web.conftest import long_video
from tests.contrib.web.stand_in import FRAMES, PROMPT, SIDE, UPSCALE

OPTIONS = Options(
  limits=Limits(max_side=1000, max_seconds=4.0), styles={"ink": "/styles/ink"}
)
PAINT = np.arange(48 * 64).reshape(48, 64) % 64 < 20


@pytest.fixture
def ask(drawing, tmp_path):
  """Reads a form, and says what is wrong with it as the page would."""

  def asked(task, options=OPTIONS, **values):
    values = {"prompt": PROMPT} | values
    try:
      return read(task, values, drawing, options, tmp_path / "job")
    except UserError as error:
      raise UserError(words(error)) from error

  return asked


def test_every_task_has_a_tab_with_all_that_it_takes():
  assert TABS.keys() == TASKS.keys()
  shown = {"uncomposited": ["composited"], "expand": [*EDGES]}
  for name, task in TASKS.items():
    takes = {x for k in options_of(task) for x in shown.get(k, [k])}
    offered = set(TABS[name].names) - {"prompt", "style", "alpha", "strokes"}
    assert offered == takes, name
    assert set(TABS[name].names) <= LABELS.keys()
  assert TABS["inpaint"].fields == (
    ("prompt",),
    ("video",),
    ("strokes",),
    ("box", "mask"),
    ("feather", "composited"),
  )
  assert TABS["outpaint"].examples == ("prompt", "video", *EDGES)
  assert ADVANCED[0] == ("steps", "ssr_steps", "sampler")
  assert ADVANCED[2:4] == (
    ("guidance_from", "guidance_to"),
    ("oscillate_after", "oscillate_low"),
  )


def test_an_empty_form_is_as_trained(ask):
  asked = ask("text_to_video", seed=7, sampler=AS_TRAINED, steps=None)
  assert asked.prompt == PROMPT
  assert asked.how["seed"] == 7
  settings = asked.how["settings"]
  changed = {
    k: v for k, v in vars(settings).items() if v != getattr(type(settings), k)
  }
  assert changed == {"chunk": 1}  # it can be cancelled at every step


def test_settings_are_what_was_filled_in():
  values = {
    "steps": 12.0,
    "ssr_steps": "7",
    "sampler": "heun",
    "guidance_scale": 3.5,
    "guidance_from": 0.2,
    "guidance_to": 0.8,
    "window": 4,
    "overlap": 1,
    "noise_level": 0.25,
  }
  settings = read_settings(values, Limits())
  assert (settings.steps, settings.ssr_steps) == (12, 7)
  assert settings.guidance_interval == (0.2, 0.8)
  assert (settings.sampler, settings.window, settings.overlap) == ("heun", 4, 1)
  assert (settings.guidance_scale, settings.noise_level) == (3.5, 0.25)
  assert isinstance(settings.steps, int)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"prompt": " \n"}, "Prompt is empty; say what the video should show"),
    ({"prompt": "a" * 2001}, "Prompt is too long: 2001 characters; give"),
    ({"negative_prompt": "a" * 2001}, "Negative prompt is too long"),
    ({"seed": -1}, "Seed is -1; give a whole number from 0 to 4294967295"),
    ({"seed": 2**32}, "Seed is 4294967296; give a whole number"),
    ({"seed": 1.5}, "Seed is 1.5; give a whole number"),
    ({"seed": "abc"}, "Seed is 'abc'; give a number"),
    ({"seed": float("nan")}, "Seed is nan; give a number"),
    ({"sampler": "heum"}, "Sampler='heum' is not one of .*mean .heun"),
    ({"steps": 0}, "Steps=0 must be at least 1"),
    ({"steps": 1001}, "Steps is 1001; give at most 1000"),
    ({"ssr_steps": 2000}, "Steps of super-resolution is 2000; give at most"),
    ({"steps": 2.5}, "Steps is 2.5; give a whole number"),
    ({"guidance_scale": -1}, "Guidance=-1.0 must be at least 0"),
    ({"guidance_from": 0.9, "guidance_to": 0.1}, "Guidance from, to=0.9,0.1"),
    ({"tile_overlap": 1}, "Tile overlap=1.0 must be at least 0 and below 1"),
    ({"window": 20}, "indow of 20.* longer than the video of 16"),
    ({"overlap": 8, "window": 8}, "Overlap of 8 frames does not fit"),
    ({"num_frames": 15}, "15"),
    ({"num_frames": 16 * 5}, "too long: 5.0 s; make at most 4 s"),
  ],
  ids=str,
)  # fmt: skip
def test_what_all_tasks_take(ask, values, message):
  with pytest.raises(UserError, match=message) as caught:
    ask("text_to_video", **values)
  assert "\n" not in str(caught.value)
  assert "--" not in str(caught.value)


BOX = {"box": "1,2,30,40"}


@pytest.mark.parametrize(
  ("task", "values", "message"),
  [
    ("image_to_video", {}, "Picture is missing; give one to begin with, or"),
    (
      *("image_to_video", {"image": "picture", "last_image": "large"}),
      "Last picture is too large: 1001x1 pix",
    ),
    ("image_to_video", {"image": __file__}, "Picture is not a png, jpg, webp"),
    # Before the mask is missed.
    ("cinemagraph", {}, "Picture is missing; give one to work on"),
    ("inpaint", {"strokes": PAINT}, "Video is missing; give one to work on"),
    ("inpaint", {"video": "video", "strokes": PAINT} | BOX, "Box and Painted"),
    ("inpaint", {"video": "video", "box": "1,2,3"}, "Box=1,2,3 is not four"),
    ("inpaint", {"video": "video", "mask": __file__}, "Mask is not a"),
    ("outpaint", {"video": "video"}, "Left, Top, Right, Bottom are 0; give"),
    ("outpaint", {"video": "video", "top": -1}, "Top is -1; .* from 0 to 1000"),
    ("outpaint", {"video": "video", "left": 5000}, "Left is 5000; give a"),
    ("outpaint", {"video": "video", "left": 1.5}, "Left is 1.5; give a whole"),
    ("extend", {"video": "video", "times": 16}, "result is too long: 17.0 s"),
    ("video_to_video", {"video": "video", "strength": 0}, "must be above 0"),
    ("video_to_video", {"video": "video", "strength": 1.5}, "at most 1"),
    ("panorama", {"width": 5000}, "result is too large: 5000x128 pixels"),
    ("panorama", {}, "Width is missing"),
    ("stylize", {}, "Style is empty; choose one"),
    ("stylize", {"style": "inc"}, "Style='inc' is not one of ink"),
    ("stylize", {"style": "ink", "alpha": 1.6}, "Alpha=1.6"),
    ("stylize", {"style": "ink", "options": Options()}, "Style has no choices"),
  ],
)  # fmt: skip
def test_what_some_tasks_take(ask, with_files, task, values, message):
  with pytest.raises(UserError, match=message):
    ask(task, **with_files(values))


def test_pictures(ask, picture):
  asked = ask("image_to_video", image=picture, last_image=picture)
  names = [Path(asked.task.image).name, Path(asked.task.last_image).name]
  assert names == ["image.png", "last_image.png"]
  assert not asked.task.uncomposited
  assert ask("image_to_video", last_image=picture, composited=False).task == (
    dataclasses.replace(asked.task, image="", uncomposited=True)
  )


@pytest.mark.parametrize(
  "task", [k for k, v in TASKS.items() if "video" in options_of(v)]
)
def test_videos(ask, task, picture, tmp_path):
  rest = BOX if task == "inpaint" else {"left": 9}
  with pytest.raises(UserError, match="Video is not a mp4, mov, webm, mkv"):
    ask(task, video=picture, **rest)
  long = long_video(tmp_path / "long.mp4", 80)
  with pytest.raises(UserError, match=r"Video is too long: 5.0 s; at most 4 s"):
    ask(task, video=long, **rest)


@pytest.mark.parametrize(
  ("name", "how"),
  [
    ("x.mkv", {"live": "1"}),
    ("x.mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ("x.mp4", {}),
  ],
)
def test_recordings_are_as_long_as_their_frames(ask, tmp_path, name, how):
  """Not as long as the limit, where the file does not state its length."""
  video = long_video(tmp_path / name, 32, **how)
  pixels = 33 * (32 * UPSCALE) ** 2 / 1e6
  options = Options(limits=Limits(max_mpixels=pixels, max_seconds=60.0))
  ask("super_resolve", video=video, options=options, prompt="")
  less = Options(limits=Limits(max_mpixels=pixels * 31 / 33))
  with pytest.raises(UserError, match="32 frames of"):
    ask("super_resolve", video=video, options=less, prompt="")


def test_videos_that_fill_the_memory(ask, tmp_path):
  video = str(tmp_path / "x.mp4")
  write_video(video, np.zeros((40, 320, 400, 3), np.uint8), 16.0)
  limited = lambda **limits: Options(limits=Limits(**limits))
  few = limited(max_side=1000, max_mpixels=4.0)
  # As many frames as the model makes are read, and one more.
  ask("video_to_video", video=video, options=few, strength=0.5)
  with pytest.raises(UserError, match="too large: 40 frames of 400x320"):
    ask("extend", video=video, options=few)
  ask("super_resolve", video=video, options=limited(max_side=1000), prompt="")
  with pytest.raises(UserError, match="result is too large: 800x640 pixels"):
    ask("super_resolve", video=video, options=limited(max_side=799))
  least = FRAMES * (SIDE * UPSCALE) ** 2 / 1e6
  with pytest.raises(UserError, match="The result is too large"):
    ask("text_to_video", options=limited(max_mpixels=least - 0.01))


@pytest.mark.parametrize(
  ("task", "field"), [("inpaint", "video"), ("cinemagraph", "image")]
)
def test_masks(ask, task, field, picture, video, tmp_path):
  given = {field: {"video": video, "image": picture}[field]}
  painted = ask(task, strokes=PAINT, **given)
  white = read_image(painted.task.mask)[..., 0] > 127
  np.testing.assert_array_equal(white, PAINT)
  assert ask(task, **given, **BOX).task.box == BOX["box"]
  file = tmp_path / "m.png"
  write_image(file, np.eye(64, dtype=np.uint8)[..., None].repeat(3, -1) * 255)
  filed = ask(task, mask=str(file), **given)
  assert Path(filed.task.mask).name == "mask.png"
  for nothing in ({}, {"strokes": PAINT & False}, {"box": " "}):
    with pytest.raises(UserError, match="Mask is empty; paint over what is to"):
      ask(task, **given, **nothing)


@pytest.mark.parametrize(
  ("edges", "size", "made", "message"),
  [
    ((9, 0, 9, 0), (64, 64), (128, 128), "Left .* 82x64,.* add 9 pixels"),
    ((0, 8, 0, 8), (64, 64), (128, 128), "Top .* 64x80,.* add 8 pixels"),
    ((0, 0, 0, 20), (64, 64), (96, 64), "Bottom .* 64x84,.* add 31 pixels"),
    ((9, 9, 9, 9), (64, 64), (128, 128), None),
    ((32, 0, 32, 0), (64, 64), (256, 128), None),
    ((0, 8, 0, 8), (64, 48), (128, 128), None),
    ((40, 0, 0, 0), (64, 64), (128, 128), None),  # half of it stays
  ],
)
def test_edges_that_would_be_cut_off_again(edges, size, made, message):
  if message is None:
    check_edges(edges, size, made)
    return
  with pytest.raises(UserError, match=message) as caught:
    check_edges(edges, size, made)
  # What it says to add is enough.
  more = int(re.search(r"add (\d+) pixels", str(caught.value))[1])
  axes = (0, 1, 0, 1) if "above" in str(caught.value) else (1, 0, 1, 0)
  check_edges(
    tuple(e + more * x for e, x in zip(edges, axes, strict=True)), size, made
  )


def test_numbers_of_tasks(ask, video):
  asked = ask("extend", video=video, times=2, context=4)
  assert (asked.task.times, asked.task.context) == (2, 4)
  assert ask("panorama", width=512).task.width == 512
  edges = {"left": 9, "top": 8, "right": 9.0, "bottom": "8"}
  assert ask("outpaint", video=video, **edges).task.expand == "9,8,9,8"


def test_styles(ask):
  asked = ask("stylize", style="ink", alpha=0.5)
  assert (asked.style, asked.alpha) == ("ink", 0.5)
  assert ask("text_to_video", style="ink").style == ""
  with pytest.warns(UserWarning, match="beyond the style"):
    assert ask("stylize", style="ink", alpha=1.5).alpha == 1.5


@pytest.mark.parametrize(
  ("error", "shown"),
  [
    (
      VideoError("/tmp/a-b/image.jpg", "damaged: at '/tmp/a-b/image.jpg'"),
      'Picture "my cat.jpg": damaged: at \'Picture "my cat.jpg"\'',
    ),
    (
      "/tmp/q/image.png is animated; its first frame",
      'Picture "my cat.jpg" is',
    ),
    (f"{option('mask', '/tmp/q/mask.png')} is 8x8, resi", "Mask is 8x8, resi"),
    (f"{option('mask', '/q/mask.mp4')} is 8x8", "Mask is 8x8"),
    (f"{option('video', '/q/r/video.mp4')} is 8x8", 'Video "v.mov" is 8x8'),
    (UserError("/home/me/out/ink:", "is damaged"), "Ink: is damaged"),
    (UserError(option("style", "out/styles/ink"), "is"), "Style=ink is"),
    (
      "see https://example.org/a/b and 1/2, and/or",
      "See https://example.org/a/",
    ),
  ],
)
def test_paths_of_the_server_are_not_shown(error, shown):
  uploads = {"image": "my cat.jpg", "video": "v.mov"}
  text = words(error, uploads, ["out/styles/ink", "demo"])
  assert text.startswith(shown)
  assert "/tmp" not in text and "/home" not in text and "/q" not in text


def test_messages_name_tasks_and_the_model():
  error = UserError(
    option("task", "super_resolve"),
    f"needs a super-resolution stage, and {option('model')} has none",
    "name the bundle of one too",
  )
  assert words(error) == (
    '"super resolve" needs a super-resolution stage, and the model has none; '
    "name the bundle of one too"
  )
