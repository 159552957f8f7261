"""The job queue, and the runner on a fake pipeline."""

from pathlib import Path
import re
import threading
from unittest import mock

import numpy as np
from PIL import Image
import pytest

from lumiere_jax.contrib.web.forms import Asked, read
from lumiere_jax.contrib.web.jobs import Cancelled, JobQueue, JobRunner, Result
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.pipeline import SampleOptions
from lumiere_jax.inference.tasks import TextToVideo
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.video_reader import read_video
from lumiere_jax.storage.files import slug
from tests.contrib.web.stand_in import FRAMES, LARGE, PROMPT, STEPS

OPTIONS = Options(styles={"ink": "/styles/ink"})


def read_form(folder):
  (folder / "video.mp4").write_text("a file of the job")
  return Asked(task=TextToVideo(), prompt="a", how=SampleOptions())


@pytest.fixture
def queue(tmp_path):
  return JobQueue(tmp_path / "queue", capacity=3)


@pytest.fixture
def submit(queue):
  return lambda session, tab="tab": queue.submit(session, tab, read_form)


@pytest.fixture
def result(queue):
  path = queue.new_folder() / "x.mp4"
  path.touch()
  return Result(path=str(path), caption="")


def test_a_job_keeps_its_folder_until_it_is_released(queue, submit):
  job = submit("me")
  assert job.request.prompt == "a"
  assert (job.folder / "video.mp4").exists()
  assert queue.begin("you", "tab") is None
  assert queue.begin("me", "other") is None
  assert queue.begin("me", "tab") is job
  assert queue.begin("me", "tab") is None  # it runs once
  queue.release(job)
  assert not job.folder.exists()
  assert submit("me") is not job


def test_limits_per_tab_and_in_total(queue, submit):
  submit("me")
  with pytest.raises(UserError, match="This tab already has a job; wait"):
    submit("me")
  submit("me", "other")
  submit("you")
  with pytest.raises(UserError, match="The queue is full: 3 jobs are before"):
    submit("she")
  queue.cancel("you", "tab")
  submit("she")


def test_a_rejected_form_leaves_nothing(queue, submit):
  def reject(folder):
    read_form(folder)
    assert queue.begin("me", "tab") is None  # not before it is read
    raise UserError("no")

  with pytest.raises(UserError, match="no"):
    queue.submit("me", "tab", reject)
  assert not list(queue.folder.iterdir())
  submit("me")


def test_cancelling_a_waiting_job_frees_its_place(queue, submit):
  job = submit("me")
  assert queue.cancel("me", "tab")
  assert not job.folder.exists()
  assert queue.begin("me", "tab") is None
  assert not queue.cancel("me", "tab")


def test_cancelling_a_running_job(queue, submit):
  job, other = submit("me"), submit("me", "other")
  queue.begin("me", "tab")
  assert not job.cancelled
  assert queue.cancel("me", "tab")
  assert job.folder.exists()  # it may be reading there
  with pytest.raises(UserError, match="already has a job"):
    submit("me")
  assert job.cancelled
  assert not other.cancelled
  queue.release(job)
  submit("me")


def test_results_belong_to_one_session_newest_first(queue, submit):
  job = submit("me")
  for name in "abc":
    queue.finish(job, Result(path=f"/{name}", caption=name))
  assert [result.caption for result in queue.results("me")] == ["c", "b", "a"]
  assert queue.results("you") == []


def test_forgetting_a_session(queue, submit, result):
  waiting, running, theirs = submit("me"), submit("me", "other"), submit("you")
  queue.finish(waiting, result)
  queue.begin("me", "other")
  queue.forget("me")
  assert not Path(result.path).parent.exists()
  assert not waiting.folder.exists()
  assert queue.results("me") == []
  assert running.cancelled
  assert not theirs.cancelled
  queue.close()
  assert theirs.cancelled


def test_results_of_cancelled_jobs_are_removed(queue, submit, result):
  job = submit("me")
  queue.begin("me", "tab")
  queue.forget("me")
  with pytest.raises(Cancelled):
    queue.finish(job, result)
  assert not Path(result.path).parent.exists()
  assert queue.results("me") == []


def test_folder_names_are_unguessable(queue):
  names = {queue.new_folder().name for _ in range(20)}
  assert len(names) == 20
  assert all(len(name) >= 32 for name in names)


@pytest.fixture
def begin(queue, drawing):
  """Submits and begins a job."""

  def begun(task, **values):
    values = {"prompt": PROMPT} | values
    queue.submit("me", task, lambda f: read(task, values, drawing, OPTIONS, f))
    return queue.begin("me", task)

  return begun


@pytest.fixture
def run(queue, drawing):
  """Runs a job and releases it."""
  runner = JobRunner(drawing, OPTIONS)

  def finished(job, on_progress=lambda progress: None):
    try:
      return runner.run(job, queue, on_progress)
    finally:
      queue.release(job)

  return finished


BOX = {"box": "8,8,40,40"}
EDGES = dict.fromkeys(("left", "top", "right", "bottom"), 32)
TASKS = {
  "text_to_video": {"num_frames": 32},
  "text_to_image": {},
  "image_to_video": {"image": "picture"},
  "extend": {"video": "video", "context": 8},
  "inpaint": {"video": "video"} | BOX,
  "outpaint": {"video": "video"} | EDGES,
  "cinemagraph": {"image": "picture"} | BOX,
  "stylize": {"style": "ink", "alpha": 0.5},
  "video_to_video": {"video": "video"},
  "super_resolve": {"video": "video"},
  "panorama": {"width": 256},
}


@pytest.mark.parametrize("task", TASKS)
def test_results(task, run, queue, begin, with_files):
  values = with_files(TASKS[task])
  report = run(begin(task, seed=5, **values))
  (result,) = queue.results("me")
  frames = {"extend": 24, "text_to_video": 32}.get(task, FRAMES)
  size = f"{values.get('width', LARGE)}x{LARGE}"
  if task == "text_to_image":
    made = read_image(result.path)[None]
    assert report.endswith(f"s: {size}.")
    frames, suffix = 1, ".png"
  else:
    made, fps = read_video(result.path)
    assert f"{frames} frames of {size}" in report
    assert fps == pytest.approx(16)
    suffix = ".mp4"
  assert made.shape == (frames, LARGE, values.get("width", LARGE), 3)
  assert result.path.endswith(f"/{slug(PROMPT)}-seed5{suffix}")
  assert result.caption == f"{task.replace('_', ' ')}, seed 5: {PROMPT}"


def test_given_pixels_progress_and_resizing(run, queue, begin, picture):
  steps = []
  report = run(begin("image_to_video", image=picture), steps.append)
  both = [(s, k + 1, STEPS) for s in ("base", "ssr") for k in range(STEPS)]
  assert [(at.stage, at.done, at.total) for at in steps] == both
  assert re.search("Picture.* 80x60", report)  # a notice on resizing
  assert "--" not in report
  first = read_video(queue.results("me")[0].path)[0][0].astype(int)
  given = read_image(picture, (LARGE, LARGE)).astype(int)
  coarse = lambda x: x.reshape(16, 8, 16, 8, 3).mean((1, 3))  # as H.264 does
  assert np.abs(coarse(first) - coarse(given)).mean() < 8


@pytest.mark.parametrize("name", ["my cat.png", "phone.jpg", "x.webp"])
def test_uploads_are_called_by_the_names_that_users_gave(
  run, begin, tmp_path, name
):
  frames = [Image.new("RGB", (80, 60), (40 * k, 0, 0)) for k in range(3)]
  kind = {"format": "MPO"} if name == "phone.jpg" else {"duration": 100}
  path, mask = tmp_path / name, tmp_path / "left half.png"
  frames[0].save(path, save_all=True, append_images=frames[1:], **kind)
  pixels = np.zeros((30, 40, 3), np.uint8)
  pixels[:, :20] = 255
  write_image(mask, pixels)
  report = run(begin("cinemagraph", image=str(path), mask=str(mask)))
  assert str(tmp_path) not in report
  assert 'Mask "left half.png" is 40x30, resized' in report
  if "is animated" in report:  # which phones' pictures are not
    assert f'Picture "{name}" is animated' in report


def test_paths_of_painted_masks_are_not_shown(run, begin, picture, tmp_path):
  paint = np.zeros((60, 80), bool)
  paint[20:40, 20:40] = True
  report = run(begin("cinemagraph", image=picture, strokes=paint))
  assert str(tmp_path) not in report
  assert "Mask is 80x60, resized" in report


def test_a_negative_prompt_without_guidance(run, begin):
  values = {"guidance_scale": 1.0, "ssr_guidance_scale": 1.0}
  job = begin("text_to_video", negative_prompt="grey", **values)
  with pytest.raises(UserError, match="Negative prompt changes noth"):
    run(job)


def test_the_last_style_is_cached(run, begin, drawing):
  drawing.styles.clear()
  for alpha in (0.5, 0.5, 1.0):
    run(begin("stylize", style="ink", alpha=alpha))
  assert drawing.styles == [("/styles/ink", 0.5), ("/styles/ink", 1.0)]


def test_paths_of_styles_are_not_shown(run, begin, drawing):
  error = UserError(option("style", "/styles/ink"), "is damaged")
  job = begin("stylize", style="ink", alpha=0.3)
  with (
    mock.patch.object(drawing, "styled", side_effect=error),
    pytest.raises(UserError, match="Style=ink is damaged"),
  ):
    run(job)


def test_cancelling_stops_sampling(run, queue, begin, drawing):
  started, job = threading.Event(), begin("text_to_video", steps=500)
  before, drawing.pause = drawing.steps, 0.01
  outcome = []

  def work():
    try:
      outcome.append(run(job, lambda progress: started.set()))
    except Cancelled:
      outcome.append("cancelled")

  thread = threading.Thread(target=work)
  thread.start()
  try:
    assert started.wait(60)
    queue.cancel("me", "text_to_video")
    thread.join(60)
  finally:
    drawing.pause = 0.0
  assert outcome == ["cancelled"]
  assert 0 < drawing.steps - before < 500
  assert queue.results("me") == []


def test_a_job_that_is_cancelled_first_takes_no_step(run, begin, drawing):
  job, before = begin("text_to_video"), drawing.steps
  job.cancelled = True
  with pytest.raises(Cancelled):
    run(job)
  assert drawing.steps == before


@pytest.mark.parametrize(
  ("task", "values", "message"),
  [
    ("extend", {"context": 99}, "^Context=99"),
    ("inpaint", {"box": "0,0,64,64"}, "everything"),
    ("inpaint", {"box": "0,0,65,64"}, "^Box=0,0,65,64"),
  ],
)
def test_errors_use_the_labels(run, begin, video, task, values, message):
  with pytest.raises(UserError, match=message):
    run(begin(task, video=video, **values))


def test_out_of_memory(run, begin, capsys):
  full = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
  with pytest.raises(UserError, match=r"too little memory.*fewer frames"):
    run(begin("text_to_video"), mock.Mock(side_effect=full))
  assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err  # in the log
