"""The functions behind the buttons, called as Gradio calls them."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")


import os
import re
import types
from unittest import mock

import gradio as gr
import numpy as np

from lumiere_jax.contrib.web.jobs import JobQueue
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.page import build
from lumiere_jax.contrib.web.tabs import ADVANCED, TABS
from lumiere_jax.media.images import write_image
from tests.contrib.web.stand_in import FRAMES, LARGE, PROMPT, Drawing

pytestmark = pytest.mark.app


OPTIONS = Options(limits=Limits(max_side=900, max_seconds=4.0))
SHARED = ["seed", "negative_prompt", *(x for row in ADVANCED for x in row)]


@pytest.fixture(scope="module", autouse=True)
def environment():
  """`build` sets Gradio's folder there."""
  with mock.patch.dict(os.environ):
    yield


@pytest.fixture(scope="module")
def built(drawing, tmp_path_factory):
  """(queue, functions of its page by name)."""
  queue = JobQueue(tmp_path_factory.mktemp("queue"), capacity=3)
  page = build(drawing, OPTIONS, queue)
  return queue, {fn.api_name: fn.fn for fn in page.fns.values()}


@pytest.fixture
def queue(built):
  yield built[0]
  built[0].forget("me")


@pytest.fixture
def press(built, queue):
  """Calls the function behind a button of a tab."""
  _, functions = built

  def pressed(button, task, session="me", **values):
    request = types.SimpleNamespace(session_hash=session)
    if button != "check":
      return functions[f"{button}_{task}"](request)
    names = [*TABS[task].names, *SHARED]
    defaults = {"prompt": PROMPT, "composited": True}
    filled = dict.fromkeys(names) | defaults | values
    return functions[f"check_{task}"](request, *(filled[x] for x in names))

  return pressed


def test_videos_and_pictures(press, queue):
  assert press("check", "text_to_video", seed=3) == "In the queue."
  report, video, picture, download, items = press("make", "text_to_video")
  assert report.startswith("Done in ")
  assert f"{FRAMES} frames of {LARGE}x{LARGE}" in report
  (result,) = queue.results("me")
  assert items == [(result.path, result.caption)]
  assert video.value["path"] == result.path
  assert (video.visible, picture.visible) == (True, False)
  assert download.interactive
  press("check", "text_to_image")
  _, video, picture, _, items = press("make", "text_to_image")
  assert (video.visible, picture.visible) == (False, True)
  assert [path for path, _ in items] == [x.path for x in queue.results("me")]
  assert items[0][0].endswith(".png")


def test_only_queued_jobs_run(press, drawing):
  before = drawing.steps
  assert press("cancel", "text_to_video") == "Nothing to cancel."
  press("make", "text_to_video")
  press("check", "text_to_video")
  press("make", "text_to_video", session="you")
  assert press("cancel", "text_to_video") == "Cancelled."
  press("make", "text_to_video")
  assert drawing.steps == before


# test_forms.py has more.
@pytest.mark.parametrize(
  ("task", "values", "message"),
  [
    ("text_to_video", {"prompt": ""}, "^Prompt is empty"),
    ("image_to_video", {"image": "cut"}, '^Picture "my cat.png": damag'),
    ("image_to_video", {}, "^Picture is missing; give one"),
    ("cinemagraph", {"image": __file__}, "^Picture is not a png, jpg, webp"),
  ],
)
def test_wrong_inputs(press, queue, task, values, message, tmp_path, rng):
  cut = tmp_path / "my cat.png"
  write_image(cut, rng.integers(0, 256, (60, 60, 3), np.uint8))
  cut.write_bytes(cut.read_bytes()[:3000])
  values = {k: str(cut) if v == "cut" else v for k, v in values.items()}
  with pytest.raises(gr.Error) as error:
    press("check", task, **values)
  shown = error.value.message
  assert re.search(message, shown)
  assert "\n" not in shown
  assert not any(path in shown for path in (__file__, "/tmp", str(tmp_path)))
  assert not error.value.print_exception
  assert queue.begin("me", task) is None  # and no job waits


def test_a_busy_tab(press):
  press("check", "text_to_video")
  with pytest.raises(gr.Error, match="This tab already has a job"):
    press("check", "text_to_video")


def test_errors_of_a_running_job(press, video):
  press("check", "extend", video=video, context=99)
  with pytest.raises(gr.Error, match="Context=99"):
    press("make", "extend")
  press("check", "extend", video=video, context=8)  # the tab is free


def test_internal_errors_are_only_in_the_log(press, monkeypatch, capsys):
  error = ZeroDivisionError("secret details")
  broken = mock.Mock(side_effect=error)
  monkeypatch.setattr(Drawing, "text_to_video", broken)
  press("check", "text_to_video")
  with pytest.raises(gr.Error) as error:
    press("make", "text_to_video")
  assert "secret" not in error.value.message
  assert "its log says how" in error.value.message
  assert "secret details" in capsys.readouterr().err


@pytest.mark.parametrize("styles", [{}, {"ink": "/a", "oil": "/b"}])
def test_styles(drawing, tmp_path, styles):
  page = build(drawing, Options(styles=styles), JobQueue(tmp_path, capacity=3))
  configs = [block.get_config() for block in page.blocks.values()]
  hint = "start the server with --style=NAME=PATH"
  assert any(hint in str(x.get("value")) for x in configs) == (not styles)
  buttons = [x["interactive"] for x in configs if x.get("value") == "Make"]
  assert buttons.count(False) == (not styles)
  (choice,) = (x for x in configs if x.get("label") == "Style")
  assert [name for name, _ in choice["choices"]] == [*styles]
  assert choice["value"] == next(iter(styles), None)
