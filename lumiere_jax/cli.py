"""Runs entry modules, with one-line errors and exit codes."""

from collections.abc import Callable
import os
import re
import sys
from typing import Any, NoReturn
import warnings

from absl import app, flags, logging
import jax

from lumiere_jax.errors import UserError, option, set_option_format
from lumiere_jax.models.config import EXECUTION_KEYS
from lumiere_jax.storage.files import expand_user, user_cache

USAGE_EXIT = 2
TEXTS = ("prompt", "negative_prompt")
"""Flags that name no file."""

INTERRUPTED_EXIT = 130  # 128 + SIGINT, as shells report Ctrl-C.

# Errors of absl and ml_collections: an unknown config key is a KeyError or
# AttributeError, a value of the wrong type a TypeError or ValueError, a missing
# config file an OSError.
FLAG_ERRORS = (
  flags.Error,
  KeyError,
  AttributeError,
  TypeError,
  ValueError,
  OSError,
)


def run(main: Callable[[list[str]], None]) -> None:
  """Runs `main`; a `UserError` ends in one line and exit code 2."""
  set_option_format("--{}".format)
  warnings.showwarning = _show_warning
  sys.unraisablehook = _skip_closed_loop
  # Programs are kept, which shortens the next start of a command.
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(user_cache("compiled")))
  # Orbax logs every file it writes, and logs with a stack trace what it then
  # raises too.
  logging.set_verbosity(logging.FATAL)
  app.run(_guarded(main), flags_parser=_parse_flags)


def config_value(flag: flags.FlagHolder) -> dict[str, Any]:
  """The config that a flag names, with its overrides."""
  try:
    return _expand_values(flag.value.to_dict())  # notices a missing file
  except FLAG_ERRORS as error:
    raise UserError(f"{option(flag.name)}:", _words(error)) from error


def fail(message: object) -> NoReturn:
  """Prints one line and exits with code 2."""
  print("error: " + " ".join(str(message).split()), file=sys.stderr)
  sys.exit(USAGE_EXIT)


def _guarded(main: Callable[[list[str]], None]) -> Callable:
  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      fail(f"{argv[1]!r} is not a flag; flags begin with --, see --help")
    try:
      main(argv)
    except UserError as error:
      fail(error)
    except KeyboardInterrupt:
      print("\ninterrupted by Ctrl-C", file=sys.stderr)
      for stream in (sys.stdout, sys.stderr):
        stream.flush()
      # sys.exit would wait for threads that compile.
      os._exit(INTERRUPTED_EXIT)

  return guarded


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(_expanded(argv))
  except (KeyError, AttributeError) as error:
    fail(f"--config has no key {_words(error)}{_moved(argv)}")
  except (UserError, *FLAG_ERRORS) as error:
    fail(_words(error))


def _expanded(argv: list[str]) -> list[str]:
  """The arguments with ~ expanded, which shells leave inside a word."""
  done = argv[:1]
  for argument in argv[1:]:
    flag = done[-1] if argument[:1] != "-" else argument.partition("=")[0]
    is_text = flag.lstrip("-") in TEXTS
    done.append(argument if is_text else expand_user(argument))
  return done


def _expand_values(value: Any) -> Any:
  """A value of a config with ~ expanded in all its texts."""
  if isinstance(value, dict):
    return {key: _expand_values(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(_expand_values, value))
  return expand_user(value) if isinstance(value, str) else value


def _moved(argv: list[str]) -> str:
  """The new key where a flag sets one of `execution` in `model`, as of old."""
  keys = "|".join(EXECUTION_KEYS)
  found = re.search(rf"\.model\.({keys})\b", " ".join(argv))
  return f"; it is config.execution.{found[1]} now" if found else ""


def _words(error: BaseException) -> str:
  """The innermost message, without the quotes that KeyError adds."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  is_plain = isinstance(error, UserError) or not error.args
  return str(error) if is_plain else str(error.args[0])


def _skip_closed_loop(unraisable) -> None:
  """Hides an error of TensorStore's threads after a failed save."""
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def _show_warning(message, category, filename, lineno, file=None, line=None):
  del category, filename, lineno, line
  print(f"warning: {message}", file=file or sys.stderr)
