"""User-facing errors and messages, and checks of user input.

It imports no other room, so that every room can use it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import contextvars
import dataclasses
import difflib
import sys
import typing
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class UserError(Exception):
  """An input that cannot be used, shown as "FIELD PROBLEM; FIX".

  Entry modules print it as one line without a stack trace and exit with code 2.

  Attributes:
    field: the input: an `option`, a config key with its value such as
      'config.train.steps=0', or a file with a colon such as 'clip.mp4:'.
    problem: what is wrong with it.
    fix: what to do about it.
  """

  def __init__(self, field: str, problem: str = "", fix: str = ""):
    super().__init__(field, problem, fix)
    self.field, self.problem, self.fix = field, problem, fix

  def __str__(self) -> str:
    return self.format()

  def format(self, name_of: Callable[[str], str] | None = None) -> str:
    """The whole message; see `format_message`."""
    what = " ".join(part for part in (self.field, self.problem) if part)
    text = "; ".join(part for part in (what, self.fix) if part)
    return format_message(text, name_of)


class VideoError(UserError):
  """A file that cannot be used as a video or image.

  Attributes:
    path: the file.
    reason: "kind: details", the message without the file name.
  """

  def __init__(self, path: object, reason: str):
    super().__init__(f"{path}:", reason)
    self.path, self.reason = str(path), reason


@contextlib.contextmanager
def foreign_errors(error_for: Callable[[str], UserError]) -> Iterator[None]:
  """Converts whatever another library raises about a user's file.

  A decoder of damaged files may raise anything. `error_for` makes the error
  from the reason, a line; a `UserError` passes unchanged.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    reason = getattr(error, "strerror", None) or error
    line = " ".join(str(reason).split()) or type(error).__name__
    raise error_for(line) from error


# How messages name options. Libraries mark them with `option`; each front end
# replaces the marked names with its own: '--steps' on the command line, the
# label of an input field on the web page.

_MARK = "\ue000"  # Encloses the names of options.
_front_end: dict[str, Callable[[str], str]] = {"name_of": str}


def option(name: str, value: object = None) -> str:
  """Marks an option in a message, as 'name' or 'name=value'."""
  return _MARK + name + _MARK + ("" if value is None else f"={value}")


def format_message(
  text: str, name_of: Callable[[str], str] | None = None
) -> str:
  """Replaces marked options with the names that users know them by.

  These are `name_of(option)`; None: as set by `set_option_format`.
  """
  parts = text.split(_MARK)
  parts[1::2] = map(name_of or _front_end["name_of"], parts[1::2])
  return "".join(parts)


def set_option_format(name_of: Callable[[str], str]) -> None:
  """Sets how this process names options; by default by their bare names."""
  _front_end["name_of"] = name_of


# Messages that are not errors.

_on_notice: contextvars.ContextVar[Callable[[str], object] | None] = (
  contextvars.ContextVar("on_notice", default=None)
)


def notice(text: str) -> None:
  """Sends one line to `capture_notices`, else prints it to stderr."""
  line = " ".join(text.split())
  if on_notice := _on_notice.get():
    on_notice(line)
  else:
    print(f"notice: {format_message(line)}", file=sys.stderr)


@contextlib.contextmanager
def capture_notices(on_notice: Callable[[str], object]) -> Iterator[None]:
  """Within this context, notices of this thread go to `on_notice`."""
  token = _on_notice.set(on_notice)
  try:
    yield
  finally:
    _on_notice.reset(token)


# Checks of user input. Each raises a `UserError`; `what` and `where` are names
# that the user knows, such as "config.stage" or an `option`.


def suggest(name: str, known: Iterable[str]) -> str:
  """' (did you mean "x"?)' for the known name closest to `name`, or ''."""
  near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
  return f' (did you mean "{near[0]}"?)' if near else ""


def check_choice(what: str, value: str, known: Iterable[str]) -> None:
  """Checks that `value` is one of the `known` names."""
  if value not in known:
    raise UserError(
      f"{what}={value!r}",
      f"is not one of {', '.join(known)}{suggest(value, known)}",
    )


def check_unit(what: str, value: float) -> None:
  """Checks that `value` is in [0, 1]."""
  if not 0 <= value <= 1:
    raise UserError(
      f"{what}={value}", "is not in [0, 1]", "choose a value there"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """Bounds of a number; None is no bound."""

  least: float | None = None
  above: float | None = None
  most: float | None = None
  below: float | None = None

  def check_range(self, what: str, value: float) -> None:
    """Raises a UserError for `what` where a value is out of range, or NaN."""
    if not (
      (self.least is None or value >= self.least)
      and (self.above is None or value > self.above)
      and (self.most is None or value <= self.most)
      and (self.below is None or value < self.below)
    ):
      raise UserError(what, f"must be {self}")

  def __str__(self) -> str:
    """The bounds in words, such as 'at least 0 and below 1'."""
    if self.least is not None and self.most is not None:
      return f"from {self.least:g} to {self.most:g}"
    bounds = {
      "at least": self.least,
      "above": self.above,
      "at most": self.most,
      "below": self.below,
    }
    return " and ".join(
      f"{words} {bound:g}"
      for words, bound in bounds.items()
      if bound is not None
    )


def check_least(
  config: Any, where: str, names: Iterable[str], **bounds: float
) -> None:
  """Checks that attributes of a config called `where` are in a `Range`."""
  for name in names:
    value = getattr(config, name)
    Range(**bounds).check_range(f"{where}.{name}={value}", value)


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
  """Makes a dataclass from a mapping; unknown and missing keys are errors.

  Mappings for fields that are dataclasses themselves are built in turn. Lists
  become tuples, so that configs are hashable and can be static to jit. `where`
  is the name of the mapping in messages, such as "config.model".
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      raise UserError(
        f"{where}:",
        f"unknown key {key!r}{suggest(key, fields)}",
        f"known: {', '.join(fields)}",
      )
  for name, field in fields.items():
    has_default = not (
      field.default is field.default_factory is dataclasses.MISSING
    )
    if name not in values and not has_default:
      raise UserError(f"{where}:", f"{name!r} is missing", "give it a value")
  hints = typing.get_type_hints(cls)
  return cls(
    **{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()}
  )


def build_by_name(
  what: str, classes: Mapping[str, type], name: str, options: Mapping[str, Any]
) -> Any:
  """Makes the dataclass called `name`; see `check_choice` and `build`."""
  check_choice(what, name, classes)
  return build(classes[name], options, f"{what} {name!r}")


def _convert(hint: Any, value: Any, where: str) -> Any:
  if isinstance(value, Mapping):
    for kind in (hint, *typing.get_args(hint)):
      if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    return dict(value)
  if isinstance(value, list | tuple):
    return tuple(_convert(None, v, where) for v in value)
  return value
