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
from lumiere_jax.storage.atomic import check_writable, locked, remove_unfinished
from lumiere_jax.storage.remote import is_url

TEXT_CACHE = "text_cache"
"""Default folder of text features."""

_OLD_RUN = "before-"
_OF_A_RUN = ("runs.jsonl", "checkpoints", "data_report.jsonl")


@contextlib.contextmanager
def handle_preemption() -> Iterator[Callable[[int], bool]]:
  """On SIGTERM or Ctrl-C the loop saves and stops; a second Ctrl-C kills.

  With several processes, JAX handles SIGTERM: all stop at the same step.

  Yields:
    stop_requested(step): whether to stop before that step.
  """
  multihost = jax.process_count() > 1
  received: list[int] = []

  def print_stopping() -> None:
    print(
      "\nstopping after this step; the state will be saved", file=sys.stderr
    )

  def handle(number: int, frame: Any) -> None:
    del frame
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt
    received.append(number)
    if multihost:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      print_stopping()

  def stop_requested(step: int) -> bool:
    if not multihost:
      return bool(received)
    stop = multihost_utils.reached_preemption_sync_point(step)
    if stop and is_primary():
      print_stopping()
    return stop

  handled = [signal.SIGINT] if multihost else [signal.SIGTERM, signal.SIGINT]
  try:
    old = {number: signal.signal(number, handle) for number in handled}
  except ValueError:  # only the main thread can handle signals
    old = {}
  try:
    yield stop_requested
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def check_workdir(workdir: str) -> Path:
  """The workdir as a path that can be written.

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
  check_writable(workdir, folder=True)
  return Path(workdir)


@contextlib.contextmanager
def open_workdir(workdir: Path, *, resume: bool) -> Iterator[None]:
  """Creates and locks the folder, for the duration of the block.

  Without `resume`, moves an earlier run to `before-N`, if there is one. Removes
  unfinished files of a killed run. Process 0 does it for all.
  """
  if not is_primary():
    barrier("workdir")
    yield
    return
  with locked(workdir):
    # Text features stay: any run can use them, and other hosts may write them.
    files = [
      path
      for path in workdir.iterdir()
      if path.name != TEXT_CACHE and not path.name.startswith(_OLD_RUN)
    ]
    is_run = any((workdir / name).exists() for name in _OF_A_RUN)
    if is_run and not resume:
      names = (f"{_OLD_RUN}{number}" for number in itertools.count(1))
      target = next(p for p in map(workdir.joinpath, names) if not p.exists())
      target.mkdir()
      for path in files:
        path.rename(target / path.name)
    elif resume:
      for path in files:
        remove_unfinished(path)
    barrier("workdir")
    yield


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
