"""What is behind the buttons, called as Gradio does."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")


import os
import shutil
import types
from unittest import mock

import gradio as gr
import numpy as np

from lumiere_jax.contrib.web.jobs import JobQueue
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.page import build
from lumiere_jax.contrib.web.tabs import ADVANCED, TABS
from lumiere_jax.media.images import write_image
from tests.contrib.web.conftest import long_video
from tests.contrib.web.stand_in import FRAMES, SIDE, UPSCALE

pytestmark = pytest.mark.app


PROMPT = "a large red circle moving left on a black background"


LARGE = SIDE * UPSCALE


OPTIONS = Options(limits=Limits(max_side=900, max_seconds=4.0))


ME = types.SimpleNamespace(session_hash="me")


SHARED = ["seed", "negative_prompt", *(x for row in ADVANCED for x in row)]


@pytest.fixture(scope="module", autouse=True)
def environment():
  """`build` says in it where Gradio keeps files."""
  with mock.patch.dict(os.environ):
    yield


@pytest.fixture(scope="module")
def built(drawing, tmp_path_factory):
  """(desk, the functions of its page by their names)."""
  desk = JobQueue(tmp_path_factory.mktemp("desk"), most=3)
  page = build(drawing, OPTIONS, desk)
  return desk, {fn.api_name: fn.fn for fn in page.fns.values()}


@pytest.fixture
def desk(built):
  yield built[0]
  built[0].forget(ME.session_hash)


@pytest.fixture
def press(built, desk):
  """Presses a button of a tab."""
  _, behind = built

  def pressed(button, task, who=ME, **values):
    if button != "check":
      return behind[f"{button}_{task}"](who)
    names = [*TABS[task].names, *SHARED]
    defaults = {"prompt": PROMPT, "composited": True}
    filled = dict.fromkeys(names) | defaults | values
    return behind[f"check_{task}"](who, *(filled[name] for name in names))

  return pressed


def test_a_job_waits_runs_and_is_shown(press, desk):
  assert press("check", "text_to_video", seed=3) == "In the queue."
  report, video, picture, download, items = press("make", "text_to_video")
  assert report.startswith("Done in ")
  assert f"{FRAMES} frames of {LARGE}x{LARGE}" in report
  (made,) = desk.made("me")
  assert items == [(made.path, made.caption)]
  assert video.value["path"] == made.path
  assert (video.visible, picture.visible) == (True, False)
  assert download.interactive


def test_pictures_take_the_place_of_videos(press, desk):
  press("check", "text_to_video")
  press("make", "text_to_video")
  press("check", "text_to_image")
  _, video, picture, _, items = press("make", "text_to_image")
  assert (video.visible, picture.visible) == (False, True)
  assert [path for path, _ in items] == [m.path for m in desk.made("me")]
  assert items[0][0].endswith(".png")


def test_nothing_runs_that_was_not_asked_for(press, drawing):
  before = drawing.taken
  press("make", "text_to_video")
  press("check", "text_to_video")
  press("make", "text_to_video", who=types.SimpleNamespace(session_hash="you"))
  assert drawing.taken == before


def test_cancelling(press, drawing):
  before = drawing.taken
  assert press("cancel", "text_to_video") == "There is nothing to cancel."
  press("check", "text_to_video")
  assert press("cancel", "text_to_video") == "Cancelled."
  press("make", "text_to_video")
  assert drawing.taken == before


@pytest.fixture
def given(picture, video, tmp_path):
  """Files, by name."""
  large, text = tmp_path / "large.png", tmp_path / "text.png"
  write_image(large, np.zeros((2, 901, 3), np.uint8))
  text.write_text("this is no picture")
  return {
    "picture": picture,
    "video": video,
    "large": str(large),
    "text": str(text),
    "long": long_video(tmp_path / "long.mp4", 80),
  }


BAD = [
  ("text_to_video", {"prompt": ""}, "Prompt is empty; say what"),
  ("text_to_video", {"seed": -1}, "Seed is -1; give a whole number from 0"),
  ("text_to_video", {"seed": 2**32}, "Seed is 4294967296; give a whole"),
  ("text_to_video", {"sampler": "euler"}, "Sampler='euler' is not one of"),
  ("text_to_video", {"steps": 0}, "Steps=0 must be at least 1"),
  ("text_to_video", {"window": 98}, "Window of 98 frames is longer"),
  ("text_to_image", {"prompt": None}, "Prompt is empty"),
  ("image_to_video", {}, "There is no picture; give one to begin"),
  ("image_to_video", {"image": "large"}, "Picture is too large: 901x2"),
  ("image_to_video", {"image": "text"}, "Picture is not a png, jpg, webp"),
  ("image_to_video", {"image": "video"}, "Picture is not a png, jpg, webp"),
  ("extend", {}, "There is no video; give one to work on"),
  ("extend", {"video": "long"}, "Video is too long: 5.0 s; at most 4 s"),
  ("inpaint", {"video": "video"}, "The mask is empty; paint over what"),
  ("inpaint", {"video": "text", "box": "0,0,9,9"}, "Video is not a mp4, mov"),
  ("outpaint", {"video": "video"}, "All edges are 0; give pixels to add"),
  ("cinemagraph", {"image": "picture"}, "The mask is empty; paint over"),
  ("cinemagraph", {"image": "picture", "box": "a"}, "Box=a is not four whole"),
  ("stylize", {}, "There is no style to choose from"),
  ("video_to_video", {"video": "video", "strength": 2}, "Strength=2.0 must be"),
  ("super_resolve", {"video": "picture"}, "Video is not a mp4, mov, webm"),
  ("panorama", {"width": 9000}, "The result is too large: 9000x"),
]


@pytest.mark.parametrize(
  ("task", "values", "message"), BAD, ids=[f"{x[0]}-{x[2][:18]}" for x in BAD]
)
def test_each_bad_input_has_its_one_message(
  press, desk, given, task, values, message
):
  values = {
    k: given.get(v, v) if isinstance(v, str) else v for k, v in values.items()
  }
  with pytest.raises(gr.Error) as caught:
    press("check", task, **values)
  said = caught.value.message
  assert said.startswith(message)
  assert "\n" not in said
  assert "/tmp" not in said
  assert not caught.value.print_exception
  assert desk.begin("me", task) is None  # and nothing waits


def test_a_full_queue_and_a_busy_tab_are_told(press):
  press("check", "text_to_video")
  with pytest.raises(gr.Error, match="This tab has a job already"):
    press("check", "text_to_video")
  press("check", "text_to_image")
  press("check", "panorama", width=256)
  with pytest.raises(gr.Error, match="The queue is full: 3 jobs are before"):
    press("check", "stylize")


def test_what_goes_wrong_when_its_turn_has_come(press, given, desk):
  press("check", "extend", video=given["video"], context=99)
  with pytest.raises(gr.Error, match="Context=99 frames must be 1 to 15"):
    press("make", "extend")
  press("check", "extend", video=given["video"], context=8)  # the tab is free


def test_faults_of_ours_are_for_the_log(press, drawing, monkeypatch, capsys):
  def broken(*args, **how):
    raise ZeroDivisionError("secret details")

  monkeypatch.setattr(type(drawing), "text_to_video", broken)
  press("check", "text_to_video")
  with pytest.raises(gr.Error) as caught:
    press("make", "text_to_video")
  assert "secret" not in caught.value.message
  assert "its log says how" in caught.value.message
  assert "secret details" in capsys.readouterr().err


def test_styles_that_are_offered_and_none(drawing, desk, tmp_path):
  def parts(options, folder):
    page = build(drawing, options, JobQueue(tmp_path / folder, most=3))
    return [block.get_config() for block in page.blocks.values()]

  say = "start the server with --style=NAME=PATH"
  without = parts(Options(), "a")
  assert any(say in str(part.get("value")) for part in without)
  makes = [p for p in without if p.get("value") == "Make"]
  assert [p["interactive"] for p in makes].count(False) == 1
  styled = parts(Options(styles={"ink": "/a", "oil": "/b"}), "b")
  assert not any(say in str(part.get("value")) for part in styled)
  (choice,) = (p for p in styled if p.get("label") == "Style")
  assert [name for name, _ in choice["choices"]] == ["ink", "oil"]
  assert choice["value"] == "ink"


def test_a_page_needs_but_a_pipeline_and_options(drawing):
  page = build(drawing, Options())
  assert isinstance(page, gr.Blocks)
  shutil.rmtree(os.environ["GRADIO_TEMP_DIR"])
