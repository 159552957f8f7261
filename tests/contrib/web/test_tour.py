"""A tour of every tab with its first example, in a browser.

On a fake pipeline, or on a real one with --model=BUNDLE. With --shots=FOLDER it
takes screenshots: `make app-shots`.
"""

import pytest

pytest.importorskip("gradio", reason="needs the app extra")
pytest.importorskip("playwright", reason="needs the app extra")


from lumiere_jax.contrib.web.options import Options, parse_styles
from lumiere_jax.contrib.web.tabs import TABS
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import read_video
from tests.contrib.web.serving import served

pytestmark = pytest.mark.app


ZIGZAG = [(0.05 + 0.7 * (k % 2), 0.2 + 0.05 * k) for k in range(15)]
"""Strokes over the moving parts of the first example."""


@pytest.fixture(scope="module")
def site(request):
  option = lambda name: request.config.getoption(f"--{name}", "")
  if option("model"):
    pipeline = Pipeline.from_pretrained(option("model"))
    styles = parse_styles([option("style")] if option("style") else [])
  else:
    pipeline = request.getfixturevalue("drawing")
    pipeline.pause = 0.05
    styles = {"ink": "/styles/ink"}
  with served(pipeline, Options(styles=styles)) as site:
    yield site


@pytest.fixture
def person(visit, request):
  person = visit()
  steps = request.config.getoption("--steps", "")
  if steps:
    person.set_advanced("Steps", steps)
    person.set_advanced("Steps of super-resolution", steps)
    person.page.get_by_text("Advanced").click()  # closes it
  return person


@pytest.mark.parametrize("task", TABS)
def test_a_tab(person, task, tmp_path):
  tab = person.open(TABS[task].title)
  if tab.get_by_role("button", name="Make").is_disabled():
    pytest.skip("--model has no --style")
  person.example()
  report = person.make()
  if "strokes" in TABS[task].names:
    person.fill("Box", "")
    person.paint(ZIGZAG)
    report = person.make()
  file = person.download(tmp_path)
  if task == "text_to_image":
    height, width, _ = read_image(file).shape
    assert f": {width}x{height}." in report
  else:
    frames, height, width, _ = read_video(file)[0].shape
    assert f": {frames} frames of {width}x{height}" in report
  person.shoot(task)


def test_cancelling(person):
  person.open(TABS["text_to_video"].title)
  person.example()
  person.set_advanced("Steps", "900")
  person.press("Make")
  person.wait_for_text("Base")
  person.shoot("progress")
  person.press("Cancel")
  assert person.wait_for_status("ancel") == "Cancelled."
  assert not person.results().count()
