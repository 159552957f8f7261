"""A pipeline that draws, and files to upload."""

import pathlib

import av
import numpy as np
import pytest

from lumiere_jax.io.image import write_image
from lumiere_jax.io.write import write_video
from tests.web.stand_in import Drawing


def pytest_addoption(parser):
  parser.addoption(
    "--shots", default="", help="Folder for pictures of the page."
  )


@pytest.fixture(scope="module")  # no longer: it stands in for all sampling
def drawing():
  with Drawing().drawing() as pipeline:
    yield pipeline


@pytest.fixture
def picture(tmp_path, rng):
  """The path of a small picture."""
  path = tmp_path / "given" / "a picture.png"
  path.parent.mkdir(exist_ok=True)
  write_image(path, rng.integers(0, 256, (60, 80, 3), np.uint8))
  return str(path)


@pytest.fixture
def video(tmp_path, rng):
  """The path of a video of 16 frames, one second."""
  path = tmp_path / "given" / "video.mp4"
  path.parent.mkdir(exist_ok=True)
  write_video(path, rng.integers(0, 256, (16, 64, 64, 3), np.uint8), 16.0)
  return str(path)


def long_video(path: pathlib.Path, frames: int, fps: int = 16) -> str:
  """A video of one colour, which takes few bytes a frame."""
  with av.open(str(path), "w") as out:
    stream = out.add_stream("h264", fps, {"preset": "ultrafast"})
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    pixels = np.zeros((32, 32, 3), np.uint8)
    for _ in range(frames):
      frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return str(path)
