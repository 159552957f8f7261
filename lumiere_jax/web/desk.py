"""Whose jobs wait, run and are done: one desk for all sessions of the page."""

from collections.abc import Callable
import dataclasses
from pathlib import Path
import secrets
import shutil
import threading

from lumiere_jax.pipelines.told import Progress
from lumiere_jax.typing import UserError
from lumiere_jax.web.forms import Asked


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
class Job:
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

  def watch(self, progress: Progress) -> None:
    """For `How.watch`: passes on how far it is, and stops it if it is to."""
    self.check()
    self.tell(progress)


class Desk:
  """Jobs and results by session; safe to use from any thread."""

  def __init__(self, folder: Path, most: int):
    """Opens it.

    Args:
      folder: for files of jobs and results.
      most: jobs there may be at once, waiting or running.
    """
    self.folder, self._most = folder, most
    self._lock = threading.Lock()
    self._jobs: dict[tuple[str, str], Job] = {}
    self._made: dict[str, list[Made]] = {}

  def enter(self, session: str, tab: str, read: Callable[[Path], Asked]) -> Job:
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

  def _place(self, session: str, tab: str) -> Job:
    with self._lock:
      if (session, tab) in self._jobs:
        raise UserError(
          "This tab has a job already; wait until it is done, or cancel it"
        )
      if len(self._jobs) >= self._most:
        raise UserError(
          f"The queue is full: {len(self._jobs)} jobs are before yours; try "
          "again in a while"
        )
      job = Job(session=session, tab=tab, folder=self.new_folder())
      self._jobs[session, tab] = job
      return job

  def begin(self, session: str, tab: str) -> Job | None:
    """The job that waits in a tab, which now runs; None: there is none."""
    with self._lock:
      job = self._jobs.get((session, tab))
      if job is None or job.asked is None or job.running:
        return None
      job.running = True
      return job

  def leave(self, job: Job) -> None:
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

  def finish(self, job: Job, made: Made) -> None:
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
