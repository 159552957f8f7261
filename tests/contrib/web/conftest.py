"""A fake pipeline, a browser, and files to upload."""

import os
import pathlib
import shutil

import av
import numpy as np
import pytest

from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import write_video
from tests.contrib.web.stand_in import Drawing

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_addoption(parser):
  group = parser.getgroup("the page")
  group.addoption("--shots", default="", help="Folder for screenshots.")
  group.addoption("--model", default="", help="Bundle for test_tour.py.")
  group.addoption("--style", default="", help="NAME=PATH, for --model.")
  group.addoption("--steps", default="", help="Sampling steps per stage.")


@pytest.fixture(scope="module")  # not longer: it replaces all sampling
def drawing():
  with Drawing().drawing() as pipeline:
    yield pipeline


@pytest.fixture(scope="module")  # not longer: its event loop blocks others
def browser():
  if not CHROMIUM:
    pytest.skip("needs a browser: Debian's package chromium")
  from playwright.sync_api import sync_playwright

  # Chromium's sandbox does not work for root.
  args = ["--no-sandbox"] if os.geteuid() == 0 else []
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
    yield browser
    browser.close()


@pytest.fixture
def visit(browser, site, request):
  """Opens the page in a new window; fails on any unexpected event."""
  from tests.contrib.web.person import Person

  option = lambda name: request.config.getoption(name, "")
  timeout_s = 3600.0 if option("--model") else 120.0
  people = []

  def open_page() -> Person:
    page = browser.new_page(viewport={"width": 1280, "height": 1120})
    people.append(Person(page, site.url, option("--shots"), timeout_s))
    return people[-1]

  yield open_page
  unexpected = [line for person in people for line in person.unexpected]
  for person in people:
    person.page.close()
  assert not unexpected


@pytest.fixture
def person(visit):
  return visit()


@pytest.fixture
def picture(tmp_path, rng):
  """The path of a small picture."""
  path = tmp_path / "a picture.png"
  write_image(path, rng.integers(0, 256, (60, 80, 3), np.uint8))
  return str(path)


@pytest.fixture
def video(tmp_path, rng):
  """The path of a video of 16 frames, one second."""
  path = tmp_path / "given.mp4"
  write_video(path, rng.integers(0, 256, (16, 64, 64, 3), np.uint8), 16.0)
  return str(path)


@pytest.fixture
def with_files(picture, video, tmp_path):
  """Replaces "picture", "video" and "large" in a form by paths of uploads."""
  large = tmp_path / "large.png"
  write_image(large, np.zeros((1, 1001, 3), np.uint8))
  files = {"picture": picture, "video": video, "large": str(large)}
  return lambda values: {
    k: files.get(v, v) if isinstance(v, str) else v for k, v in values.items()
  }


def long_video(
  path: pathlib.Path, frames: int, fps: int = 16, **options: str
) -> str:
  """Writes a video of one colour, which takes few bytes per frame."""
  with av.open(str(path), "w", options=options) as out:
    stream = out.add_stream("h264", fps, {"preset": "ultrafast"})
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    pixels = np.zeros((32, 32, 3), np.uint8)
    for _ in range(frames):
      frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return str(path)
