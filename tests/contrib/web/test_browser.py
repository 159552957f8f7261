"""What a person does with the page, in a browser."""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")
pytest.importorskip("playwright", reason="needs the app extra")


import contextlib
from pathlib import Path
import time

import numpy as np

from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import read_video
from lumiere_jax.media.video_writer import write_video
from tests.contrib.web.person import until
from tests.contrib.web.serving import served
from tests.contrib.web.stand_in import FRAMES, SIDE, UPSCALE

pytestmark = pytest.mark.app


PROMPT = "a large red circle moving left on a black background"


LARGE = SIDE * UPSCALE


@pytest.fixture(scope="module")
def site(drawing):
  options = Options(
    limits=Limits(max_side=900, max_seconds=4.0), styles={"ink": "/styles/ink"}
  )
  with served(drawing, options) as site:
    yield site


@pytest.fixture
def grey(tmp_path):
  """The path of a video of one second that grows brighter."""
  ramp = np.linspace(90, 150, FRAMES).astype(np.uint8)
  pixels = np.broadcast_to(ramp[:, None, None, None], (FRAMES, LARGE, LARGE, 3))
  path = tmp_path / "grey.mp4"
  write_video(path, np.ascontiguousarray(pixels), 16.0)
  return str(path)


def shape(path: Path) -> tuple[int, ...]:
  return read_video(path)[0].shape[:3]


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
  person.settle("Steps", "3")
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
  person.page.get_by_text("Advanced").click()


def test_a_person_sees_how_far_it_is(person, drawing):
  person.open("Text to video")
  person.example(0)
  drawing.pause = 0.25
  try:
    person.press("Make")
    person.tab.get_by_text("Super-resolution").wait_for()
    person.said("Done in")
  finally:
    drawing.pause = 0.0


def test_image_to_video(person, picture, tmp_path):
  person.open("Image to video")
  person.fill("Prompt", PROMPT)
  person.upload("Picture", picture)
  said = person.make()
  assert "Picture is 80x60, resized and cropped" in said
  first = read_video(person.download(tmp_path))[0][0].astype(int)
  given = read_image(picture, (LARGE, LARGE)).astype(int)
  coarse = lambda x: x.reshape(16, 8, 16, 8, 3).mean((1, 3))
  assert np.abs(coarse(first) - coarse(given)).mean() < 8


def test_extend(person, grey, tmp_path):
  person.open("Extend")
  person.fill("Prompt", PROMPT)
  person.upload("Video", grey)
  person.fill("Context", "6")
  assert f"{FRAMES + 10} frames of" in person.make()
  assert shape(person.download(tmp_path)) == (FRAMES + 10, LARGE, LARGE)


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


def test_cinemagraph(person, tmp_path):
  person.open("Cinemagraph")
  person.example(0)
  person.part("Painted mask").locator("canvas").first.wait_for()
  person.fill("Box", "")
  person.paint(((0.2, 0.2), (0.8, 0.2)), ((0.2, 0.4), (0.8, 0.4)))
  person.make()
  made = read_video(person.download(tmp_path))[0].astype(int)
  still = np.abs(made - made[:1]).max((0, 3)) < 20
  assert still[LARGE * 5 // 8 :].all()


def test_outpaint(person, grey, tmp_path):
  person.open("Outpaint")
  person.fill("Prompt", PROMPT)
  person.upload("Video", grey)
  person.fill("Left", "64")
  person.fill("Right", "64")
  person.press("Make")
  assert "add 64 pixels more above and below" in person.refused()
  person.fill("Top", "64")
  person.fill("Bottom", "64")
  person.make()
  assert shape(person.download(tmp_path)) == (FRAMES, LARGE, LARGE)


def test_stylize(person, drawing, tmp_path):
  drawing.styles.clear()
  person.open("Stylize")
  person.example(1)
  person.make()
  assert drawing.styles == [("/styles/ink", 1.0)]
  assert shape(person.download(tmp_path)) == (FRAMES, LARGE, LARGE)


def test_video_to_video(person, grey, tmp_path):
  person.open("Video to video")
  person.fill("Prompt", PROMPT)
  person.upload("Video", grey)
  person.make()
  assert shape(person.download(tmp_path)) == (FRAMES, LARGE, LARGE)


def test_super_resolve(person, grey, tmp_path):
  person.open("Super-resolve")
  person.upload("Video", grey)
  person.make()
  file = person.download(tmp_path)
  assert shape(file) == (FRAMES, LARGE * UPSCALE, LARGE * UPSCALE)
  assert file.name == "super_resolve-seed0.mp4"


def test_panorama(person, tmp_path):
  person.open("Panorama")
  person.example(0)
  person.make()
  assert shape(person.download(tmp_path)) == (FRAMES, LARGE, 2 * LARGE)


def test_text_to_picture(person, tmp_path):
  person.open("Text to picture")
  person.example(2)
  person.make()
  person.page.locator("#picture img").wait_for()
  assert person.page.locator("#video").is_hidden()
  file = person.download(tmp_path)
  assert file.suffix == ".png"
  assert read_image(file).shape == (LARGE, LARGE, 3)


def test_bad_inputs_are_told_and_can_be_mended(person, tmp_path, picture):
  person.open("Text to video")
  person.press("Make")
  assert person.refused() == "Prompt is empty; say what the video should show"
  text = tmp_path / "notes.png"
  text.write_text("this is no picture")
  person.open("Cinemagraph")
  person.fill("Prompt", PROMPT)
  person.press("Make")
  assert person.refused() == "There is no picture; give one to work on"
  person.part("Picture").locator("input[type=file]").set_input_files(text)
  assert person.refused().startswith("Picture is not a png, jpg, webp or bmp")
  person.tab.get_by_label("Remove Image").click()
  person.upload("Picture", picture)
  person.part("Painted mask").locator("canvas").first.wait_for()
  person.press("Make")
  said = person.refused()
  assert said.startswith("The mask is empty; paint over what is to be made")
  person.fill("Box", "0,0,20,20")
  person.press("Make")
  person.said("Done in")


def test_results_are_kept_the_newest_first_and_for_oneself(visit, tmp_path):
  me = visit()
  me.open("Text to video")
  for number in (0, 1):
    me.example(number)
    me.make()
    me.tab.get_by_label("Prompt").fill("")
  me.results().nth(1).wait_for()
  assert "yellow-star" in me.download(tmp_path).name
  me.results().nth(1).click()
  me.page.get_by_text("seed 0: a large red circle").first.wait_for()
  me.page.wait_for_timeout(300)
  assert "red-circle" in me.download(tmp_path).name
  someone = visit()
  assert someone.results().count() == 0


@contextlib.contextmanager
def under_way(person, drawing):
  """A job of many steps, which has begun."""
  person.settle("Steps", "900")
  drawing.pause = 0.05
  try:
    person.press("Make")
    person.tab.get_by_text("Base").wait_for()
    yield
    until(lambda: not drawing.running)
  finally:
    drawing.pause = 0.0


def test_cancelling_stops_the_sampling(person, drawing):
  person.open("Text to video")
  person.example(0)
  before = drawing.taken
  with under_way(person, drawing):
    person.press("Cancel")
    assert person.said("ancel") == "Cancelled."
    until(lambda: not drawing.running)
    taken = drawing.taken
    assert 0 < taken - before < 900
    time.sleep(0.5)
    assert drawing.taken == taken
  person.settle("Steps", "2")
  person.make()  # the place is free
  assert person.results().count() == 1


def test_two_jobs_take_turns(visit, drawing):
  first, second = visit(), visit()
  drawing.pause, drawing.most = 0.2, 0
  try:
    for person in (first, second):
      person.open("Text to video")
      person.example(0)
    first.press("Make")
    first.tab.get_by_text("Base").wait_for()
    second.press("Make")
    second.tab.get_by_text("queue").wait_for()
    first.said("Done in")
    second.said("Done in")
  finally:
    drawing.pause = 0.0
  assert drawing.most == 1
  assert first.results().count() == second.results().count() == 1


def test_what_waits_is_cancelled_at_once(visit, drawing):
  first, second = visit(), visit()
  for person in (first, second):
    person.open("Text to video")
    person.example(0)
  with under_way(first, drawing):
    second.press("Make")
    second.tab.get_by_text("queue").wait_for()
    second.press("Cancel")
    assert second.said("ancel") == "Cancelled."
    assert drawing.running  # the other goes on
    first.press("Cancel")
  assert not second.results().count()
  second.make()


def test_who_leaves_stops_the_job(visit, drawing):
  person = visit()
  person.open("Text to video")
  person.example(0)
  with under_way(person, drawing):
    person.page.close()
