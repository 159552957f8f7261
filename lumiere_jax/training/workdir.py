"""The folder of a run: made, locked, set aside, and complained of."""

from collections.abc import Iterator
import contextlib
import itertools
from pathlib import Path

from lumiere_jax.io.atomic import locked, remove_unfinished
from lumiere_jax.io.remote import is_url
from lumiere_jax.parallel.agree import is_first, wait_for_all
from lumiere_jax.typing import UserError

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
      f"--workdir={workdir} is a URL, but a run needs a folder of a file "
      "system, one that all its hosts share; mount the bucket with gcsfuse "
      "(docs/launch.md), or take NFS or Filestore, and give the folder"
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
  if not is_first():
    wait_for_all("workdir")
    yield
    return
  with locked(workdir):
    if not resume:
      _set_aside(workdir)
    for path in _of_the_run(workdir):
      remove_unfinished(path)
    wait_for_all("workdir")
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
      f"--workdir={workdir} cannot be written ({error.strerror or error})"
    ) from error
