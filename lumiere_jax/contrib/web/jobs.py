"""Per-session job queue, results, and the runner that executes jobs.

Gradio's own queue does not replace it: Gradio can only interrupt a running
function that is a generator, and its session state is kept for an hour after
the page was closed.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
from pathlib import Path
import secrets
import shutil
import threading
import time
import traceback

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.contrib.web.forms import Asked
from lumiere_jax.contrib.web.labels import words
from lumiere_jax.contrib.web.options import Options
from lumiere_jax.errors import UserError, capture_notices
from lumiere_jax.inference.cascade import OnProgress, Progress
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.storage.files import slug


class Cancelled(Exception):
  """The job was cancelled; raised from within sampling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """A finished video or picture.

  Attributes:
    path: mp4 or png, in a folder with an unguessable name.
    caption: task, seed and prompt.
  """

  path: str
  caption: str

  def remove(self) -> None:
    """Removes the file and its folder."""
    shutil.rmtree(Path(self.path).parent, ignore_errors=True)


@dataclasses.dataclass(eq=False, kw_only=True)
class PageJob:
  """A job of one tab in one session.

  Attributes:
    session, tab: where it was submitted.
    folder: holds its files; removed with the job.
    request: what to generate, once the form has been read.
    waiting: whether it can begin.
    running: whether it has begun.
    cancelled: whether to stop before it starts, or at its next sampling step.
  """

  session: str
  tab: str
  folder: Path
  request: Asked = dataclasses.field(init=False)
  waiting: bool = False
  running: bool = False
  cancelled: bool = False

  def check(self) -> None:
    """Raises `Cancelled` once the job is cancelled."""
    if self.cancelled:
      raise Cancelled


class JobQueue:
  """Jobs and results by session; thread-safe.

  Attributes:
    folder: holds the files of jobs and results.
  """

  def __init__(self, folder: Path, capacity: int):
    """At most `capacity` jobs may wait or run."""
    self.folder, self._capacity = folder, capacity
    self._lock = threading.Lock()
    self._jobs: dict[tuple[str, str], PageJob] = {}
    self._results: dict[str, list[Result]] = {}

  def submit(
    self, session: str, tab: str, read: Callable[[Path], Asked]
  ) -> PageJob:
    """Reserves a place, then reads the form; frees the place if that raises.

    `read` takes a folder for the job's files.
    """
    with self._lock:
      if (session, tab) in self._jobs:
        raise UserError(
          "This tab", "already has a job", "wait until it is done, or cancel it"
        )
      if len(self._jobs) >= self._capacity:
        raise UserError(
          "The queue",
          f"is full: {len(self._jobs)} jobs are before yours",
          "try again later",
        )
      job = PageJob(session=session, tab=tab, folder=self.new_folder())
      self._jobs[session, tab] = job
    try:
      job.request = read(job.folder)
    except BaseException:
      self.release(job)
      raise
    job.waiting = True
    return job

  def begin(self, session: str, tab: str) -> PageJob | None:
    """Marks the waiting job of a tab as running; None if there is none."""
    with self._lock:
      job = self._jobs.get((session, tab))
      if job is None or not job.waiting:
        return None
      job.waiting, job.running = False, True
      return job

  def release(self, job: PageJob) -> None:
    """Frees the place of a job and removes its files."""
    with self._lock:
      if self._jobs.get((job.session, job.tab)) is job:
        del self._jobs[job.session, job.tab]
    shutil.rmtree(job.folder, ignore_errors=True)

  def cancel(self, session: str, tab: str) -> bool:
    """Cancels the job of a tab; False if there is none.

    A running job keeps its place until it has stopped.
    """
    with self._lock:
      job = self._jobs.get((session, tab))
    if job is None:
      return False
    job.cancelled = True
    if not job.running:
      self.release(job)
    return True

  def finish(self, job: PageJob, result: Result) -> None:
    """Adds the result of a job to its session.

    Raises:
      Cancelled: the job was cancelled meanwhile; the result is removed.
    """
    with self._lock:
      if not job.cancelled:
        self._results.setdefault(job.session, []).insert(0, result)
        return
    result.remove()
    raise Cancelled

  def results(self, session: str) -> list[Result]:
    """Results of a session, newest first."""
    with self._lock:
      return list(self._results.get(session, ()))

  def forget(self, session: str) -> None:
    """Cancels the jobs of a session and removes its results."""
    with self._lock:
      tabs = [tab for owner, tab in self._jobs if owner == session]
    for tab in tabs:
      self.cancel(session, tab)
    with self._lock:  # after its jobs: a cancelled job adds no result
      results = self._results.pop(session, [])
    for result in results:
      result.remove()

  def close(self) -> None:
    """Cancels every job."""
    with self._lock:
      for job in self._jobs.values():
        job.cancelled = True

  def new_folder(self) -> Path:
    """Creates a folder with an unguessable name."""
    folder = self.folder / secrets.token_urlsafe(24)
    folder.mkdir(parents=True)
    return folder


_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # XLA's status code


class JobRunner:
  """Runs jobs on a loaded pipeline, which all sessions share."""

  def __init__(self, pipeline: Pipeline, options: Options):
    self._pipeline, self._options = pipeline, options
    # A styled pipeline has weights of its own, so only one is cached.
    self._styled = functools.lru_cache(maxsize=1)(self._apply_style)

  def run(self, job: PageJob, queue: JobQueue, on_progress: OnProgress) -> str:
    """Samples a job and adds the result to its session.

    Args:
      job: a job that `JobQueue.begin` returned.
      queue: its queue.
      on_progress: called at each step.

    Returns:
      A one-line report.

    Raises:
      UserError: the job failed; worded with the page's labels.
      Cancelled: it was cancelled.
    """
    notices: list[str] = []
    try:
      job.check()
      start = time.monotonic()
      with capture_notices(notices.append):
        pixels = self._sample(job, on_progress)
      job.check()
      queue.finish(job, self._write(pixels, job.request, queue.new_folder()))
    except UserError as error:
      raise UserError(self._words(job, error)) from error
    except Exception as error:
      if _OUT_OF_MEMORY not in str(error):
        raise
      traceback.print_exc()
      raise UserError(
        "The device",
        "has too little memory for this job",
        "ask for fewer frames, a smaller window or fewer pixels",
      ) from error
    frames = f"{len(pixels)} frames of " if pixels.ndim == 4 else ""
    size = f"{frames}{pixels.shape[-2]}x{pixels.shape[-3]}"
    report = f"Done in {time.monotonic() - start:.1f} s: {size}"
    shown = [self._words(job, line) for line in notices]
    return ". ".join([report, *shown]) + "."

  def _words(self, job: PageJob, error: UserError | str) -> str:
    return words(error, job.request.uploads, self._options.secret)

  def _sample(
    self, job: PageJob, on_progress: OnProgress
  ) -> UInt8[np.ndarray, "... h w 3"]:
    def check_and_report(progress: Progress) -> None:
      job.check()
      on_progress(progress)

    request, pipeline = job.request, self._pipeline
    if request.style:
      pipeline = self._styled(request.style, request.alpha)
    how = request.how | {"on_progress": check_and_report}
    return request.task.run(pipeline, request.prompt, how)

  def _apply_style(self, style: str, alpha: float) -> Pipeline:
    path = self._options.styles[style]
    try:
      return self._pipeline.styled(path, alpha)
    except UserError as error:  # users know the style's name, not its path
      parts = error.field, error.problem, error.fix
      raise UserError(*(part.replace(path, style) for part in parts)) from error

  def _write(self, pixels: np.ndarray, request: Asked, folder: Path) -> Result:
    task, seed = request.task, request.how["seed"]
    path = folder / f"{slug(request.prompt) or task.name}-seed{seed}"
    if task.picture:
      path = path.with_suffix(".png")
      write_image(path, pixels)
    else:
      path = path.with_suffix(".mp4")
      write_video(path, pixels, self._pipeline.fps)
    caption = f"{task.name.replace('_', ' ')}, seed {seed}"
    if request.prompt:
      caption += f": {request.prompt}"
    return Result(path=os.fspath(path), caption=caption)
