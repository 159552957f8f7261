"""The run's folder and preemption: locking, old runs, SIGTERM and Ctrl-C."""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
from pathlib import Path
import signal
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils

from lumiere_jax.errors import UserError, option
from lumiere_jax.parallel.multihost import barrier, is_primary
from lumiere_jax.storage.atomic import locked, remove_unfinished
from lumiere_jax.storage.remote import is_url


@contextlib.contextmanager
def handle_preemption() -> Iterator[Callable[[int], bool]]:
  """On SIGTERM or Ctrl-C the loop saves and stops; a second Ctrl-C kills.

  With several processes, a signal to one stops all at the same step.

  Yields:
    stop_requested(step): whether to stop before that step.
  """
  multihost = jax.process_count() > 1
  with _multihost_signals() if multihost else _signals() as stop_requested:
    yield stop_requested


@contextlib.contextmanager
def _multihost_signals() -> Iterator[Callable[[int], bool]]:
  """Ctrl-C becomes SIGTERM, on which JAX has all processes agree on a step."""

  def forward(number: int, frame: Any) -> None:
    del number, frame
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)

  old = signal.signal(signal.SIGINT, forward)

  def stop_requested(step: int) -> bool:
    stop = multihost_utils.reached_preemption_sync_point(step)
    if stop and is_primary():
      _print_stopping()
    return stop

  try:
    yield stop_requested
  finally:
    signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
  received: list[int] = []

  def handle(number: int, frame: Any) -> None:
    del frame
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt
    received.append(number)
    _print_stopping()

  try:
    old = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # only the main thread can handle signals
    old = {}
  try:
    yield lambda step: bool(received)
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def _print_stopping() -> None:
  print("\nstopping after this step; the state will be saved", file=sys.stderr)


TEXT_CACHE = "text_cache"
"""Default folder of text features."""

_OLD_RUN = "before-"


def check_workdir(workdir: str) -> Path:
  """The workdir as a path.

  A run locks its folder, appends to logs and renames folders, which only a
  file system can do: URLs raise a UserError.
  """
  if is_url(workdir):
    raise UserError(
      option("workdir", workdir),
      "is a URL, but a run needs a folder on a file system that all its "
      "hosts share",
      "mount the bucket with gcsfuse (docs/launch.md), or use NFS or "
      "Filestore, and give that folder",
    )
  return Path(workdir)


@contextlib.contextmanager
def open_workdir(workdir: Path, *, resume: bool) -> Iterator[None]:
  """Creates and locks the folder, for the duration of the block.

  Without `resume`, moves an earlier run to `before-N`. Removes unfinished
  files of a killed run. Process 0 does it for all.
  """
  if not is_primary():
    barrier("workdir")
    yield
    return
  with locked(workdir):
    if not resume:
      _move_old_run(workdir)
    for path in _files_of_run(workdir):
      remove_unfinished(path)
    barrier("workdir")
    yield


def _files_of_run(workdir: Path) -> list[Path]:
  """Files and folders of the current run.

  Not text features: any run can use them, and other hosts may be writing them.
  """
  return [
    path
    for path in workdir.iterdir()
    if path.name != TEXT_CACHE and not path.name.startswith(_OLD_RUN)
  ]


def _move_old_run(workdir: Path) -> None:
  """Moves the files of the run to `before-N`."""
  old = _files_of_run(workdir)
  if not old:
    return
  names = (f"{_OLD_RUN}{number}" for number in itertools.count(1))
  target = next(p for p in map(workdir.joinpath, names) if not p.exists())
  target.mkdir()
  for path in old:
    path.rename(target / path.name)


@contextlib.contextmanager
def report_disk_errors(workdir: Path) -> Iterator[None]:
  """Turns an OSError into a UserError that names the workdir."""
  try:
    yield
  except OSError as error:
    raise UserError(
      option("workdir", workdir),
      f"cannot be written ({error.strerror or error})",
      "check permissions and free space",
    ) from error
