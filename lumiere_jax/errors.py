"""Errors a user can fix, checks that raise them, and messages to the user.

It imports no other room.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import contextvars
import dataclasses
import difflib
import math
import sys
import typing
from typing import Any, TypeVar


class UserError(Exception):
  """Something the user gave cannot be used.

  The message is one line: which input, what was wrong and how to fix it. Entry
  modules print it without a stack trace and exit with code 2.
  """


T = TypeVar("T")


def suggest(name: str, known) -> str:
  """' (did you mean "x"?)' for the known name nearest to `name`, or ''."""
  near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
  return f' (did you mean "{near[0]}"?)' if near else ""


def check_choice(what: str, value: str, known) -> None:
  """Raises a UserError unless `value` is one of the `known` names.

  Args:
    what: the flag or config key, e.g. "config.stage".
    value: what the user gave.
    known: the names there are.
  """
  if value not in known:
    raise UserError(
      f"{what}={value!r} is not one of {', '.join(known)}"
      f"{suggest(value, known)}"
    )


def check_least(
  config: Any,
  where: str,
  names: Iterable[str],
  *,
  above: float = -math.inf,
  least: float = -math.inf,
) -> None:
  """Raises a UserError where a value of a config is too small, or no number.

  Args:
    config: holds the values.
    where: its name for the user, e.g. "config.train".
    names: of the values to check.
    above: they must be greater than this.
    least: they must be this or greater.
  """
  for name in names:
    value = getattr(config, name)
    if not value > above:
      raise UserError(f"{where}.{name}={value} must be above {above:g}")
    if not value >= least:
      raise UserError(f"{where}.{name}={value} must be at least {least:g}")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
  """Makes the dataclass `cls` from a mapping, naming what does not fit.

  Mappings for fields that are dataclasses themselves are built in turn; lists
  become tuples, so that configs are hashable and jit can key on them.

  Args:
    cls: a dataclass; its own `__post_init__` may check values.
    values: field name -> value.
    where: the name of the mapping for the user, e.g. "config.model".

  Raises:
    UserError: a key `cls` does not know, or a required one is missing.
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      raise UserError(
        f"{where}: unknown key {key!r}{suggest(key, fields)}; "
        f"known: {', '.join(fields)}"
      )
  missing = [name for name, f in fields.items() if _required(f)]
  for name in missing:
    if name not in values:
      raise UserError(f"{where}: {name!r} is missing; give it a value")
  hints = typing.get_type_hints(cls)
  return cls(
    **{k: _field(hints[k], v, f"{where}.{k}") for k, v in values.items()}
  )


def _required(field: dataclasses.Field) -> bool:
  missing = dataclasses.MISSING
  return field.default is missing and field.default_factory is missing


def _field(hint: Any, value: Any, where: str) -> Any:
  if isinstance(value, Mapping):
    options = (hint, *typing.get_args(hint))
    nested = [o for o in options if dataclasses.is_dataclass(o)]
    return build(nested[0], value, where) if nested else dict(value)
  if isinstance(value, list | tuple):
    return tuple(_field(None, v, where) for v in value)
  return value


def check_unit(what: str, value: float) -> None:
  """Raises a UserError unless `value` lies in [0, 1]."""
  if not 0 <= value <= 1:
    raise UserError(f"{what}={value} is not in [0, 1]; choose a value there")


def make(
  what: str,
  classes: Mapping[str, type],
  name: str,
  options: Mapping[str, Any],
) -> Any:
  """Builds the dataclass called `name` in `classes` from its options.

  Raises:
    UserError: an unknown name or option, or one the class itself refuses.
  """
  check_choice(what, name, classes)
  return build(classes[name], options, f"{what} {name!r}")


_TELL: contextvars.ContextVar[Callable[[str], object] | None] = (
  contextvars.ContextVar("tell", default=None)
)


def notice(text: str) -> None:
  """Tells one line: to who listens, else to stderr behind 'notice: '."""
  line = " ".join(text.split())
  tell = _TELL.get()
  if tell:
    tell(line)
  else:
    print(f"notice: {line}", file=sys.stderr)


@contextlib.contextmanager
def listening(tell: Callable[[str], object]) -> Iterator[None]:
  """Within it, notices of this thread go to `tell` in place of stderr."""
  token = _TELL.set(tell)
  try:
    yield
  finally:
    _TELL.reset(token)


class VideoError(UserError):
  """A file that cannot serve as a video or picture.

  Attributes:
    path: the file.
    reason: "kind: details", the same without the file's name.
  """

  def __init__(self, path, reason: str):
    super().__init__(f"{path}: {reason}")
    self.path = str(path)
    self.reason = reason
