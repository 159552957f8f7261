"""The folder of a run: made, set aside, and complained of."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

from lumiere_jax.typing import UserError

_BEFORE = "before-"


def open_workdir(workdir: Path, *, resume: bool) -> None:
  """Makes the folder; sets an earlier run in it aside unless told to resume.

  Raises:
    UserError: that cannot be.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not resume:
      _set_aside(workdir)
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be made or written ({error.strerror}); name "
      "a folder you may write to"
    ) from error


def _set_aside(workdir: Path) -> None:
  """Moves all that lies in it to `before-N`; text features stay."""
  kept = {"text_cache"}
  old = [
    path
    for path in workdir.iterdir()
    if path.name not in kept and not path.name.startswith(_BEFORE)
  ]
  if not old:
    return
  number = 1 + len(list(workdir.glob(f"{_BEFORE}*")))
  target = workdir / f"{_BEFORE}{number}"
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
