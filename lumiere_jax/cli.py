"""What the entry modules share: running with one-line errors."""

from collections.abc import Callable
import sys
import warnings

from absl import app, flags, logging

from lumiere_jax.typing import UserError

USAGE_EXIT = 2


def run(main: Callable[[list[str]], None]) -> None:
  """Runs `main`; what the user can mend ends in one line and exit code 2."""
  warnings.showwarning = _show_warning
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
  app.run(_guarded(main), flags_parser=_parse_flags)


def fail(message: object) -> None:
  """Prints one line and exits with code 2."""
  print("error: " + " ".join(str(message).split()), file=sys.stderr)
  sys.exit(USAGE_EXIT)


def _guarded(main: Callable[[list[str]], None]) -> Callable:
  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      fail(f"{argv[1]!r} is no flag; flags begin with --, see --help")
    try:
      main(argv)
    except UserError as error:
      fail(error)

  return guarded


def _parse_flags(argv: list[str]) -> list[str]:
  # ml_collections answers an unknown config key with a plain KeyError or
  # AttributeError, and a value of the wrong type with a TypeError or
  # ValueError.
  mendable = (
    flags.Error,
    UserError,
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
    OSError,
  )
  try:
    return flags.FLAGS(argv)
  except mendable as error:
    fail(error.args[0] if error.args else error)


def _show_warning(message, category, filename, lineno, file=None, line=None):
  del category, filename, lineno, line
  print(f"warning: {message}", file=file or sys.stderr)
