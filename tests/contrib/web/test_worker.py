"""Jobs of every tab, made by a pipeline that draws."""

import threading

import numpy as np
import pytest

from lumiere_jax.contrib.web.forms import read
from lumiere_jax.contrib.web.jobs import Cancelled, JobQueue, Maker
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image
from lumiere_jax.media.video_reader import probe, read_video
from lumiere_jax.storage.files import slug
from tests.contrib.web.stand_in import FRAMES, SIDE, STEPS, UPSCALE

PROMPT = "a large red circle moving left on a black background"


OPTIONS = Options(styles={"ink": "/styles/ink"})


LARGE = SIDE * UPSCALE


@pytest.fixture
def desk(tmp_path):
  return JobQueue(tmp_path / "desk", most=9)


@pytest.fixture
def maker(drawing):
  return Maker(drawing, OPTIONS)


@pytest.fixture
def job(desk, drawing):
  """A job that has begun."""

  def begun(task, **values):
    values = {"prompt": PROMPT} | values
    desk.enter("me", task, lambda f: read(task, values, drawing, OPTIONS, f))
    return desk.begin("me", task)

  return begun


BOX = {"box": "8,8,40,40"}


AROUND = dict.fromkeys(("left", "top", "right", "bottom"), 32)


TASKS = {
  "text_to_video": ({}, (FRAMES, LARGE, LARGE)),
  "image_to_video": ({"image": "picture"}, (FRAMES, LARGE, LARGE)),
  "extend": ({"video": "video", "context": 8}, (24, LARGE, LARGE)),
  "inpaint": ({"video": "video"} | BOX, (FRAMES, LARGE, LARGE)),
  "outpaint": ({"video": "video"} | AROUND, (FRAMES, LARGE, LARGE)),
  "cinemagraph": ({"image": "picture"} | BOX, (FRAMES, LARGE, LARGE)),
  "stylize": ({"style": "ink", "alpha": 0.5}, (FRAMES, LARGE, LARGE)),
  "video_to_video": ({"video": "video"}, (FRAMES, LARGE, LARGE)),
  "super_resolve": ({"video": "video"}, (FRAMES, LARGE, LARGE)),
  "panorama": ({"width": 256}, (FRAMES, LARGE, 256)),
}


@pytest.mark.parametrize("task", TASKS)
def test_videos(task, maker, desk, job, request):
  values, shape = TASKS[task]
  values = {
    k: request.getfixturevalue(v) if v in ("picture", "video") else v
    for k, v in values.items()
  }
  report = maker.make(job(task, seed=5, **values), desk, lambda at: None)
  (made,) = desk.made("me")
  video, fps = read_video(made.path)
  assert video.shape == (*shape, 3)
  assert fps == pytest.approx(16)
  frames, height, width = shape
  assert f"{frames} frames of {width}x{height}" in report
  assert made.path.endswith(f"/{slug(PROMPT)}-seed5.mp4")
  assert made.caption == f"{task.replace('_', ' ')}, seed 5: {PROMPT}"


def test_pictures(maker, desk, job):
  report = maker.make(job("text_to_image"), desk, lambda at: None)
  (made,) = desk.made("me")
  assert made.path.endswith(f"/{slug(PROMPT)}-seed0.png")
  assert read_image(made.path).shape == (LARGE, LARGE, 3)
  assert report.endswith(f"{LARGE}x{LARGE}.")


def test_what_is_given_stays(maker, desk, job, picture):
  maker.make(job("image_to_video", image=picture), desk, lambda at: None)
  first = read_video(desk.made("me")[0].path)[0][0].astype(int)
  given = read_image(picture, (LARGE, LARGE)).astype(int)
  coarse = lambda x: x.reshape(16, 8, 16, 8, 3).mean((1, 3))  # as H.264 does
  assert np.abs(coarse(first) - coarse(given)).mean() < 8


def test_it_says_how_far_it_is_and_what_was_resized(maker, desk, job, picture):
  steps = []
  report = maker.make(job("image_to_video", image=picture), desk, steps.append)
  said = [(at.stage, at.done, at.total) for at in steps]
  both = [(s, k + 1, STEPS) for s in ("base", "ssr") for k in range(STEPS)]
  assert said == both
  assert "Picture is 80x60, resized and cropped at its centre to" in report
  assert "--" not in report


def test_paths_of_masks_are_not_told(maker, desk, job, picture, tmp_path):
  paint = np.zeros((60, 80), bool)
  paint[20:40, 20:40] = True
  made = job("cinemagraph", image=picture, strokes=paint)
  assert str(tmp_path) not in maker.make(made, desk, lambda at: None)


def test_styles_are_worn_once_for_the_same(maker, desk, job, drawing):
  drawing.styles.clear()
  for alpha in (0.5, 0.5, 1.0):
    styled = job("stylize", style="ink", alpha=alpha)
    maker.make(styled, desk, lambda at: None)
    desk.leave(styled)
  assert drawing.styles == [("/styles/ink", 0.5), ("/styles/ink", 1.0)]


def test_paths_of_styles_are_not_told(maker, desk, job, drawing, monkeypatch):
  def damaged(style, alpha):
    raise UserError(f"--style={style} is damaged")

  monkeypatch.setattr(drawing, "styled", damaged)
  styled = job("stylize", style="ink", alpha=0.3)
  with pytest.raises(UserError, match="Style=ink is damaged"):
    maker.make(styled, desk, lambda at: None)


def test_cancelling_stops_the_sampling(maker, desk, job, drawing):
  begun, slow = threading.Event(), job("text_to_video", steps=500)
  before, drawing.pause = drawing.taken, 0.01
  outcome = []

  def run():
    try:
      outcome.append(maker.make(slow, desk, lambda at: begun.set()))
    except Cancelled:
      outcome.append("cancelled")

  thread = threading.Thread(target=run)
  thread.start()
  try:
    assert begun.wait(60)
    desk.cancel("me", "text_to_video")
    thread.join(60)
  finally:
    drawing.pause = 0.0
  assert outcome == ["cancelled"]
  assert 0 < drawing.taken - before < 500
  assert desk.made("me") == []


def test_what_is_cancelled_before_its_turn_takes_no_step(
  maker, desk, job, drawing
):
  gone, before = job("text_to_video"), drawing.taken
  gone.cancel()
  with pytest.raises(Cancelled):
    maker.make(gone, desk, lambda at: None)
  assert drawing.taken == before


def test_errors_of_the_pipeline_come_in_words_of_the_page(
  maker, desk, job, video
):
  long = job("extend", video=video, context=99)
  with pytest.raises(UserError) as caught:
    maker.make(long, desk, lambda at: None)
  assert str(caught.value).startswith("Context=99 frames must be 1 to 15")
  everything = job("inpaint", video=video, box="0,0,64,64")
  with pytest.raises(UserError, match="marks everything"):
    maker.make(everything, desk, lambda at: None)
  desk.leave(everything)
  outside = job("inpaint", video=video, box="0,0,65,64")
  with pytest.raises(UserError, match="Box=0,0,65,64 reaches outside"):
    maker.make(outside, desk, lambda at: None)


def test_a_full_device_is_told_as_such(maker, desk, job, monkeypatch, capsys):
  full = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

  def raises(at):
    raise full

  with pytest.raises(UserError, match="memory of the device is too small"):
    maker.make(job("text_to_video"), desk, raises)
  assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err  # for who runs it


def test_a_made_video_is_as_long_as_it_says(maker, desk, job):
  maker.make(job("text_to_video", num_frames=32), desk, lambda at: None)
  info = probe(desk.made("me")[0].path)
  assert info.num_frames == 32
  assert info.duration_s == pytest.approx(2.0, abs=0.01)
