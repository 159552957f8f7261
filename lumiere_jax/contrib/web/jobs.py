"""Per-session job queue, the worker that runs it, and results."""

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
from lumiere_jax.errors import UserError, listening, option
from lumiere_jax.inference.cascade import Progress
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.storage.files import slug


class Cancelled(Exception):
  """Somebody has cancelled the job; raised inside of sampling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
  """A finished video or picture.

  Attributes:
    path: mp4 or png, in a folder whose name cannot be guessed.
    caption: what it was made of.
  """

  path: str
  caption: str


@dataclasses.dataclass(eq=False, kw_only=True)
class PageJob:
  """Something that was asked for in one tab of one session.

  Attributes:
    session: whose it is.
    tab: where it was asked for.
    folder: for its files; gone with the job.
    asked: what is to be made.
    running: whether it no longer waits.
    tell: is told of each step.
  """

  session: str
  tab: str
  folder: Path
  asked: Asked | None = None
  running: bool = False
  tell: Callable[[Progress], object] = lambda progress: None
  _cancelled: threading.Event = dataclasses.field(
    default_factory=threading.Event
  )

  def cancel(self) -> None:
    """Stops it: before it begins, or at its next step."""
    self._cancelled.set()

  @property
  def cancelled(self) -> bool:
    """Whether somebody has cancelled it."""
    return self._cancelled.is_set()

  def check(self) -> None:
    """Raises Cancelled if it is."""
    if self.cancelled:
      raise Cancelled

  def on_progress(self, progress: Progress) -> None:
    """Reports progress; raises `Cancelled` once the job is cancelled."""
    self.check()
    self.tell(progress)


class JobQueue:
  """Jobs and results by session; safe to use from any thread."""

  def __init__(self, folder: Path, most: int):
    """Opens it.

    Args:
      folder: for files of jobs and results.
      most: jobs there may be at once, waiting or running.
    """
    self.folder, self._most = folder, most
    self._lock = threading.Lock()
    self._jobs: dict[tuple[str, str], PageJob] = {}
    self._made: dict[str, list[Made]] = {}

  def enter(
    self, session: str, tab: str, read: Callable[[Path], Asked]
  ) -> PageJob:
    """A place for a job, if there is one.

    Args:
      session: whose it is.
      tab: where it is asked for.
      read: what it is, given a folder for its files.

    Raises:
      UserError: this tab's job is not done, too many wait, or what `read`
        raises.
    """
    job = self._place(session, tab)
    try:
      job.asked = read(job.folder)
    except BaseException:
      self.leave(job)
      raise
    return job

  def _place(self, session: str, tab: str) -> PageJob:
    with self._lock:
      if (session, tab) in self._jobs:
        raise UserError(
          "",
          "This tab has a job already",
          "wait until it is done, or cancel it",
        )
      if len(self._jobs) >= self._most:
        raise UserError(
          "",
          f"The queue is full: {len(self._jobs)} jobs are before yours",
          "try again in a while",
        )
      job = PageJob(session=session, tab=tab, folder=self.new_folder())
      self._jobs[session, tab] = job
      return job

  def begin(self, session: str, tab: str) -> PageJob | None:
    """The job that waits in a tab, which now runs; None: there is none."""
    with self._lock:
      job = self._jobs.get((session, tab))
      if job is None or job.asked is None or job.running:
        return None
      job.running = True
      return job

  def leave(self, job: PageJob) -> None:
    """Frees the place of a job that is done, and removes its files."""
    with self._lock:
      if self._jobs.get((job.session, job.tab)) is job:
        del self._jobs[job.session, job.tab]
    shutil.rmtree(job.folder, ignore_errors=True)

  def cancel(self, session: str, tab: str) -> bool:
    """Cancels the job of a tab.

    A running one keeps its place until it has stopped.

    Returns:
      Whether there was one.
    """
    with self._lock:
      job = self._jobs.get((session, tab))
    if job is None:
      return False
    job.cancel()
    if not job.running:
      self.leave(job)
    return True

  def finish(self, job: PageJob, made: Made) -> None:
    """Adds the result of a job to its session's.

    Raises:
      Cancelled: it was cancelled meanwhile; the result is removed.
    """
    with self._lock:
      if not job.cancelled:
        self._made.setdefault(job.session, []).insert(0, made)
        return
    shutil.rmtree(Path(made.path).parent, ignore_errors=True)
    raise Cancelled

  def made(self, session: str) -> list[Made]:
    """What a session has made, the newest first."""
    with self._lock:
      return list(self._made.get(session, ()))

  def forget(self, session: str) -> None:
    """Cancels what a session has asked for, and removes what it has made."""
    with self._lock:
      tabs = [tab for who, tab in self._jobs if who == session]
    for tab in tabs:
      self.cancel(session, tab)
    with self._lock:  # after its jobs are: a cancelled one adds nothing
      gone = self._made.pop(session, [])
    for made in gone:
      shutil.rmtree(Path(made.path).parent, ignore_errors=True)

  def close(self) -> None:
    """Cancels every job."""
    with self._lock:
      jobs = list(self._jobs.values())
    for job in jobs:
      job.cancel()

  def new_folder(self) -> Path:
    """A new folder, whose name is as good as a password."""
    folder = self.folder / secrets.token_urlsafe(24)
    folder.mkdir(parents=True)
    return folder


_FULL = "RESOURCE_EXHAUSTED"  # how XLA begins to say that memory is full


class Maker:
  """A loaded cascade, and what was last made of it by a style."""

  def __init__(self, pipeline: Pipeline, options: Options):
    """Takes the pipeline, which is loaded once for all.

    Args:
      pipeline: or whatever has its methods.
      options: of the page.
    """
    self._pipeline = pipeline
    # A styled cascade has weights of its own: one is kept, not all.
    self._in_style = functools.lru_cache(maxsize=1)(
      lambda style, alpha: _styled(pipeline, style, options, alpha)
    )

  def make(
    self, job: PageJob, desk: JobQueue, tell: Callable[[Progress], object]
  ) -> str:
    """Makes it, writes it and keeps it for its session.

    Args:
      job: that has begun.
      desk: where it is kept.
      tell: is told of each step.

    Returns:
      A line about it.

    Raises:
      UserError: it cannot be made; in words of the page.
      Cancelled: it was to stop.
    """
    job.tell = tell
    try:
      job.check()
      begun, notices = time.monotonic(), []
      with listening(notices.append):
        pixels = self._pixels(job.asked, job)
      job.check()
      desk.finish(job, self._write(pixels, job.asked, desk))
    except UserError as error:
      raise UserError(words(error)) from error
    except Exception as error:
      if _FULL not in str(error):
        raise
      traceback.print_exc()
      raise UserError(
        "",
        "The memory of the device is too small for this",
        "ask for fewer frames, a smaller window or fewer pixels",
      ) from error
    seconds = time.monotonic() - begun
    return _report(pixels, seconds, notices)

  def _pixels(
    self, asked: Asked, job: PageJob
  ) -> UInt8[np.ndarray, "... h w 3"]:
    pipeline = self._pipeline
    if asked.style:
      pipeline = self._in_style(asked.style, asked.alpha)
    how = asked.how | {"on_progress": job.on_progress}
    return asked.task.run(pipeline, asked.prompt, how)

  def _write(self, pixels: np.ndarray, asked: Asked, desk: JobQueue) -> Made:
    seed = asked.how["seed"]
    name = slug(asked.prompt) or asked.task.name
    place = desk.new_folder() / f"{name}-seed{seed}"
    if asked.task.picture:
      path = place.with_suffix(".png")
      write_image(path, pixels)
    else:
      path = place.with_suffix(".mp4")
      write_video(path, pixels, self._pipeline.fps)
    task = asked.task.name.replace("_", " ")
    said = f": {asked.prompt}" if asked.prompt else ""
    return Made(path=os.fspath(path), caption=f"{task}, seed {seed}{said}")


def _styled(
  pipeline: Pipeline, style: str, options: Options, alpha: float
) -> Pipeline:
  path = options.styles[style]
  try:
    return pipeline.styled(path, alpha)
  except UserError as error:  # known to people by its name alone
    parts = (error.field, error.problem, error.fix)
    raise UserError(*(part.replace(path, style) for part in parts)) from error


def _report(pixels: np.ndarray, seconds: float, notices: list[str]) -> str:
  size = f"{pixels.shape[-2]}x{pixels.shape[-3]}"
  what = f"{len(pixels)} frames of {size}" if pixels.ndim == 4 else size
  said = [words(line) for line in notices if option("mask") not in line]
  return ". ".join([f"Done in {seconds:.1f} s: {what}", *said]) + "."
