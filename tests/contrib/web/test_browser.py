"""The page in a browser: forms, errors, results, cancelling, turns.

test_tour.py has the examples of every tab.
"""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")
pytest.importorskip("playwright", reason="needs the app extra")


import contextlib
from pathlib import Path
import time

import numpy as np

from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.media.video_reader import read_video
from lumiere_jax.media.video_writer import write_video
from tests.contrib.web.person import until
from tests.contrib.web.serving import served
from tests.contrib.web.stand_in import FRAMES, LARGE, PROMPT

pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def site(drawing):
  options = Options(
    limits=Limits(max_side=900, max_seconds=4.0), styles={"ink": "/styles/ink"}
  )
  with served(drawing, options) as site:
    yield site


@pytest.fixture
def grey(tmp_path):
  """The path of a video of one second that gets brighter."""
  ramp = np.linspace(90, 150, FRAMES).astype(np.uint8)
  pixels = np.broadcast_to(ramp[:, None, None, None], (FRAMES, LARGE, LARGE, 3))
  path = tmp_path / "grey.mp4"
  write_video(path, np.ascontiguousarray(pixels), 16.0)
  return str(path)


@pytest.fixture
def slow(drawing):
  """Makes sampling slow: seconds per step."""
  yield lambda pause: setattr(drawing, "pause", pause)
  drawing.pause = 0.0


def shape(path: Path) -> tuple[int, ...]:
  return read_video(path)[0].shape[:3]


def open_example(person, title: str = "Text to video", number: int = 0):
  person.open(title)
  person.example(number)


def test_text_to_video(person, tmp_path):
  person.open("Text to video")
  person.fill("Prompt", PROMPT)
  seed = person.page.get_by_label("Seed")
  assert seed.input_value() == "0"
  person.page.get_by_role("button", name="New seed").click()
  person.page.wait_for_function(
    "document.querySelector('input[aria-label=\"Seed\"]').value != '0'"
  )
  chosen = seed.input_value()
  assert person.page.get_by_label("Sampler").is_hidden()
  person.set_advanced("Steps", "3")
  person.page.get_by_label("Sampler").click()
  person.page.get_by_role("option", name="heun").click()
  assert f"{FRAMES} frames of {LARGE}x{LARGE}" in person.make()
  video = person.page.locator("#video video")
  assert video.get_attribute("src").endswith(".mp4")
  person.page.wait_for_function(
    "document.querySelector('#video video').currentTime > 0"
  )
  file = person.download(tmp_path)
  assert file.name.endswith(f"-seed{chosen}.mp4")
  assert shape(file) == (FRAMES, LARGE, LARGE)


def test_progress(person, slow):
  open_example(person)
  slow(0.25)
  person.press("Make")
  person.wait_for_text("Super-resolution")
  person.wait_for_status("Done in")


def test_outpaint(person, grey, tmp_path):
  person.open("Outpaint")
  person.fill("Prompt", PROMPT)
  person.upload("Video", grey)
  for label in ("Left", "Right"):
    person.fill(label, "64")
  person.press("Make")
  assert "64 pixels" in person.read_error()
  for label in ("Top", "Bottom"):
    person.fill(label, "64")
  person.make()
  assert shape(person.download(tmp_path)) == (FRAMES, LARGE, LARGE)


def test_inpaint(person, grey, tmp_path):
  person.open("Inpaint")
  person.fill("Prompt", PROMPT)
  person.upload("Video", grey)
  person.paint(((0.3, 0.5), (0.7, 0.5)))
  person.make()
  made = read_video(person.download(tmp_path))[0].astype(int)
  ramp = np.linspace(90, 150, FRAMES)
  changed = np.abs(made - ramp[:, None, None, None]).max((0, 3)) > 25
  middle = slice(LARGE * 7 // 16, LARGE * 9 // 16)
  assert changed[LARGE // 2, LARGE * 3 // 8 : LARGE * 5 // 8].all()
  assert not changed[: LARGE // 4].any()
  assert not changed[-LARGE // 4 :].any()
  assert not changed[middle, : LARGE // 8].any()


def test_wrong_inputs_can_be_corrected(person, tmp_path, picture):
  def make_fails(words: str) -> None:
    person.press("Make")
    assert words in person.read_error()

  person.open("Text to video")
  make_fails("Prompt")
  text = tmp_path / "notes.png"
  text.write_text("not a picture")
  person.open("Cinemagraph")
  person.fill("Prompt", PROMPT)
  make_fails("icture")
  upload = person.component("Picture").locator("input[type=file]")
  upload.set_input_files(text)
  assert person.read_error().startswith("Picture is not a png, jpg")
  person.tab.get_by_label("Remove Image").click()
  person.upload("Picture", picture)
  person.component("Painted mask").locator("canvas").first.wait_for()
  make_fails("ask")
  person.fill("Box", "0,0,20,20")
  person.press("Make")
  person.wait_for_status("Done in")


def test_results_are_private_and_newest_first(visit, tmp_path):
  me = visit()
  for number in (0, 1):
    open_example(me, number=number)
    me.make()
    me.tab.get_by_label("Prompt").fill("")
  me.results().nth(1).wait_for()
  assert "yellow-star" in me.download(tmp_path).name
  me.results().nth(1).click()
  me.page.get_by_text("seed 0: a large red circle").first.wait_for()
  me.page.wait_for_timeout(300)
  assert "red-circle" in me.download(tmp_path).name
  assert visit().results().count() == 0


@contextlib.contextmanager
def long_job(person, drawing, slow):
  """A job of many steps, which has begun and must be stopped."""
  person.set_advanced("Steps", "900")
  slow(0.05)
  person.press("Make")
  person.wait_for_text("Base")
  yield
  until(lambda: not drawing.running)
  slow(0.0)


def test_cancelling_stops_sampling(person, drawing, slow):
  open_example(person)
  before = drawing.steps
  with long_job(person, drawing, slow):
    person.press("Cancel")
    assert person.wait_for_status("ancel") == "Cancelled."
    until(lambda: not drawing.running)
    steps = drawing.steps
    assert 0 < steps - before < 900
    time.sleep(0.5)
    assert drawing.steps == steps
  person.set_advanced("Steps", "2")
  person.make()  # the place is free
  assert person.results().count() == 1


def test_two_jobs_take_turns(visit, drawing, slow):
  first, second = visit(), visit()
  drawing.max_running = 0
  slow(0.2)
  for person in (first, second):
    open_example(person)
  first.press("Make")
  first.wait_for_text("Base")
  second.press("Make")
  second.wait_for_text("queue")
  for person in (first, second):
    person.wait_for_status("Done in")
    assert person.results().count() == 1
  assert drawing.max_running == 1


def test_waiting_jobs_are_cancelled_at_once(visit, drawing, slow):
  first, second = visit(), visit()
  for person in (first, second):
    open_example(person)
  with long_job(first, drawing, slow):
    second.press("Make")
    second.wait_for_text("queue")
    second.press("Cancel")
    assert second.wait_for_status("ancel") == "Cancelled."
    assert drawing.running  # the other goes on
    first.press("Cancel")
  assert not second.results().count()
  second.make()


def test_leaving_the_page_stops_the_job(visit, drawing, slow):
  person = visit()
  open_example(person)
  with long_job(person, drawing, slow):
    person.page.close()
