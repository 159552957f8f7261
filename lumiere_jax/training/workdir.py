"""The folder of a run: made, locked, set aside; SIGTERM and Ctrl-C."""

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
def interruptible() -> Iterator[Callable[[int], bool]]:
  """SIGTERM and Ctrl-C ask the loop to save and end; a second Ctrl-C kills.

  A notice to one of several processes stops all of them at the same step.

  Returns:
    stopped(step): whether to stop before the step of that number.
  """
  many = jax.process_count() > 1
  with _ctrl_c_as_sigterm() if many else _signals() as stopped:
    yield stopped


@contextlib.contextmanager
def _ctrl_c_as_sigterm() -> Iterator[Callable[[int], bool]]:
  """JAX listens for SIGTERM and has all processes agree on a step."""

  def ask(number: int, frame: Any) -> None:
    del number, frame
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)

  old = signal.signal(signal.SIGINT, ask)

  def stopped(step: int) -> bool:
    stop = multihost_utils.reached_preemption_sync_point(step)
    if stop and is_primary():
      _say()
    return stop

  try:
    yield stopped
  finally:
    signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
  asked: list[int] = []

  def ask(number: int, frame: Any) -> None:
    del frame
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)
    _say()

  try:
    old = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: signals are somebody else's
    old = {}
  try:
    yield lambda step: bool(asked)
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def _say() -> None:
  print("\nstopping after this step; the state will be saved", file=sys.stderr)


TEXT_CACHE = "text_cache"
"""Folder of text features, unless the config names another."""


_BEFORE = "before-"


def check_workdir(workdir: str) -> Path:
  """The folder that --workdir names.

  Raises:
    UserError: it is a URL. A run locks its folder, appends to logs and renames
      folders, which only a file system can do.
  """
  if is_url(workdir):
    raise UserError(
      option("workdir", workdir),
      "is a URL, but a run needs a folder of a file system, one that "
      "all its hosts share",
      "mount the bucket with gcsfuse (docs/launch.md), or take NFS "
      "or Filestore, and give the folder",
    )
  return Path(workdir)


@contextlib.contextmanager
def opened_workdir(workdir: Path, *, resume: bool) -> Iterator[None]:
  """Makes the folder, and keeps other runs out of it until the end.

  Sets an earlier run in it aside unless told to resume, and removes what a
  killed run had half written. One host of several does it for all.

  Raises:
    UserError: that cannot be, or another run is under way in it.
  """
  if not is_primary():
    barrier("workdir")
    yield
    return
  with locked(workdir):
    if not resume:
      _set_aside(workdir)
    for path in _of_the_run(workdir):
      remove_unfinished(path)
    barrier("workdir")
    yield


def _of_the_run(workdir: Path) -> list[Path]:
  """What lies in it of the present run: not what was set aside.

  Nor text features, which any run can use, and other hosts may be writing.
  """
  return [
    path
    for path in workdir.iterdir()
    if path.name != TEXT_CACHE and not path.name.startswith(_BEFORE)
  ]


def _set_aside(workdir: Path) -> None:
  """Moves all of the run to `before-N`."""
  old = _of_the_run(workdir)
  if not old:
    return
  names = (f"{_BEFORE}{number}" for number in itertools.count(1))
  target = next(p for p in map(workdir.joinpath, names) if not p.exists())
  target.mkdir()
  for path in old:
    path.rename(target / path.name)


@contextlib.contextmanager
def telling_what_failed(workdir: Path) -> Iterator[None]:
  """Turns failures of the disk into a UserError that names the workdir."""
  try:
    yield
  except OSError as error:
    raise UserError(
      option("workdir", workdir),
      f"cannot be written ({error.strerror or error})",
    ) from error
