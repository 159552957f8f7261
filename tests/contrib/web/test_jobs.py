"""Places in the queue: taken, given back, cancelled, forgotten."""

from pathlib import Path

import pytest

from lumiere_jax.contrib.web.forms import Asked
from lumiere_jax.contrib.web.jobs import Cancelled, JobQueue, Made
from lumiere_jax.errors import UserError
from lumiere_jax.inference.cascade import Progress
from lumiere_jax.inference.pipeline import SampleOptions
from lumiere_jax.inference.tasks import TextToVideo

STEP = Progress(stage="base", done=1, total=2, canvas=None)


def asked(folder):
  (folder / "video.mp4").write_text("a file of the job")
  return Asked(task=TextToVideo(), prompt="a", how=SampleOptions())


@pytest.fixture
def desk(tmp_path):
  return JobQueue(tmp_path, most=3)


def test_a_job_has_a_place_and_a_folder_until_it_is_done(desk):
  job = desk.enter("me", "tab", asked)
  assert job.asked.prompt == "a"
  assert (job.folder / "video.mp4").exists()
  assert desk.begin("you", "tab") is None
  assert desk.begin("me", "other") is None
  assert desk.begin("me", "tab") is job
  assert desk.begin("me", "tab") is None  # it runs once
  told = []
  job.tell = told.append
  job.on_progress(STEP)
  assert told == [STEP]
  desk.leave(job)
  assert not job.folder.exists()
  assert desk.enter("me", "tab", asked) is not job


def test_one_job_a_tab_and_so_many_in_all(desk):
  desk.enter("me", "tab", asked)
  with pytest.raises(UserError, match="This tab has a job already; wait"):
    desk.enter("me", "tab", asked)
  desk.enter("me", "other", asked)
  desk.enter("you", "tab", asked)
  with pytest.raises(UserError, match="The queue is full: 3 jobs are before"):
    desk.enter("she", "tab", asked)
  desk.cancel("you", "tab")
  desk.enter("she", "tab", asked)


def test_a_form_that_is_refused_leaves_nothing(desk, tmp_path):
  def refused(folder):
    asked(folder)
    assert desk.begin("me", "tab") is None  # not before it is read
    raise UserError("no")

  with pytest.raises(UserError, match="no"):
    desk.enter("me", "tab", refused)
  assert not list(tmp_path.iterdir())
  desk.enter("me", "tab", asked)


def test_cancelling_what_waits_frees_its_place_at_once(desk):
  job = desk.enter("me", "tab", asked)
  assert desk.cancel("me", "tab")
  assert not job.folder.exists()
  assert desk.begin("me", "tab") is None
  assert not desk.cancel("me", "tab")


def test_cancelling_what_runs_stops_it_at_its_next_step(desk):
  job = desk.enter("me", "tab", asked)
  other = desk.enter("me", "other", asked)
  desk.begin("me", "tab")
  job.on_progress(STEP)
  assert desk.cancel("me", "tab")
  assert job.folder.exists()  # it may be reading there
  with pytest.raises(UserError, match="has a job already"):
    desk.enter("me", "tab", asked)
  with pytest.raises(Cancelled):
    job.on_progress(STEP)
  other.on_progress(STEP)
  desk.leave(job)
  desk.enter("me", "tab", asked)


def test_results_are_of_one_session_the_newest_first(desk):
  job = desk.enter("me", "tab", asked)
  for name in "abc":
    desk.finish(job, Made(path=f"/{name}", caption=name))
  assert [made.caption for made in desk.made("me")] == ["c", "b", "a"]
  assert desk.made("you") == []


def test_who_leaves_takes_all_along(desk):
  folder = desk.new_folder()
  (folder / "x.mp4").touch()
  waiting = desk.enter("me", "tab", asked)
  desk.finish(waiting, Made(path=str(folder / "x.mp4"), caption=""))
  running = desk.enter("me", "other", asked)
  theirs = desk.enter("you", "tab", asked)
  desk.begin("me", "other")
  desk.forget("me")
  assert not folder.exists()
  assert not waiting.folder.exists()
  assert desk.made("me") == []
  with pytest.raises(Cancelled):
    running.check()
  theirs.check()
  desk.close()
  with pytest.raises(Cancelled):
    theirs.check()


def test_a_result_that_comes_too_late_is_not_kept(desk):
  job = desk.enter("me", "tab", asked)
  desk.begin("me", "tab")
  desk.forget("me")
  folder = desk.new_folder()
  (folder / "x.mp4").touch()
  with pytest.raises(Cancelled):
    desk.finish(job, Made(path=str(folder / "x.mp4"), caption=""))
  assert not folder.exists()
  assert desk.made("me") == []


def test_names_of_folders_cannot_be_guessed(desk):
  names = {Path(desk.new_folder()).name for _ in range(20)}
  assert len(names) == 20
  assert all(len(name) >= 32 for name in names)
