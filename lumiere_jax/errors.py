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
  """An input that cannot be used: which one, what is wrong, how to fix it.

  Entry modules print it as one line without a stack trace and exit with code 2.
  Options are named by `option`, so that each front end words them in its own
  way.

  Attributes:
    field: the input, such as 'config.train.steps=0', an option or 'FILE:'; ''
      where the problem names it.
    problem: what is wrong with it.
    fix: what to do about it.
  """

  def __init__(self, field: str, problem: str = "", fix: str = ""):
    super().__init__(field, problem, fix)
    self.field, self.problem, self.fix = field, problem, fix

  def __str__(self) -> str:
    return self.worded(_front_end["name_of"])

  def worded(self, name_of: Callable[[str], str]) -> str:
    """The message, with options as `name_of` calls them."""
    what = " ".join(part for part in (self.field, self.problem) if part)
    return word("; ".join(part for part in (what, self.fix) if part), name_of)


_MARK = "\ue000"  # Stands around the names of options.
_front_end: dict[str, Callable[[str], str]] = {"name_of": str}


def option(name: str, value: object = None) -> str:
  """An option in a message: 'name' or 'name=value', worded when it is shown."""
  return _MARK + name + _MARK + ("" if value is None else f"={value}")


def word(text: str, name_of: Callable[[str], str] | None = None) -> str:
  """A message with its options as `name_of` (or this front end) calls them."""
  parts = text.split(_MARK)
  parts[1::2] = map(name_of or _front_end["name_of"], parts[1::2])
  return "".join(parts)


def name_options(name_of: Callable[[str], str]) -> None:
  """Sets how this front end calls options; by default by their names alone."""
  _front_end["name_of"] = name_of


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
    print(f"notice: {word(line)}", file=sys.stderr)


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
    super().__init__(f"{path}:", reason)
    self.path = str(path)
    self.reason = reason
