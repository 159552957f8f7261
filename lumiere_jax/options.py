"""Options: dataclass fields that carry their help, range and choices.

An option is declared once, as a field. Command-line flags and their --help
(`lumiere_jax.flags`), the forms of the web page, the columns of prompt files
and --help_config are made from it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import re
import textwrap
import types
import typing
from typing import Any, TypeVar

from lumiere_jax.errors import Range, check_choice, format_message, option

_KEY = "option"
_ATTRIBUTES = "\n  Attributes:\n"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldInfo(Range):
  """What front ends need to know of a field.

  Attributes:
    help: one or two sentences, with other options named by `errors.option`.
    name: the option, where it is not called as the field.
    label: its name on the page, where that is not made from `name`.
    hint: a few words for the page, where `help` is too long for it.
    group: fields of one group stand in one row of the page's settings; the
      page does not show the others.
    choices: names it can take.
    required: whether it has to be given; its default then stands for nothing.
    parse: reads it from text, where its type does not say how.
    comma: whether a list is one text with commas, instead of several options.
  """

  help: str
  name: str = ""
  label: str = ""
  hint: str = ""
  group: str = ""
  choices: Iterable[str] = ()
  required: bool = False
  parse: Callable[[str], Any] | None = None
  comma: bool = False

  def check(self, value: Any) -> None:
    """Raises a UserError where a value is out of range or no choice."""
    if self.choices:
      check_choice(option(self.name), value, self.choices)
    self.check_range(option(self.name, value), value)


def setting(default: Any = dataclasses.MISSING, help: str = "", **info: Any):
  """A dataclass field that is an option; see `FieldInfo` for the arguments."""
  return dataclasses.field(
    default=default, metadata={_KEY: FieldInfo(help=help, **info)}
  )


def options_of(*classes: type) -> dict[str, FieldInfo]:
  """The options of dataclasses, by field; the first class has precedence."""
  found: dict[str, FieldInfo] = {}
  for cls in classes:
    for field in dataclasses.fields(cls):
      if _KEY in field.metadata:
        info = field.metadata[_KEY]
        named = dataclasses.replace(info, name=info.name or field.name)
        found.setdefault(field.name, named)
  return found


def documented(cls: type[T]) -> type[T]:
  """Decorator of a dataclass: lists its options in its docstring."""
  options = options_of(cls)
  if not options:
    return cls
  doc = (cls.__doc__ or "").rstrip()
  if _ATTRIBUTES not in doc + "\n":
    doc += f"\n{_ATTRIBUTES.rstrip()}"
  for name, info in options.items():
    entry = f"{name}: {format_message(info.help)}"
    lines = textwrap.wrap(entry, 74, break_on_hyphens=False)
    doc += "\n    " + "\n      ".join(lines)
  cls.__doc__ = f"{doc}\n  "
  return cls


def check_values(config: Any) -> None:
  """Raises a UserError where a value of a dataclass is out of range."""
  for name, info in options_of(type(config)).items():
    value = getattr(config, name)
    if value is not None:
      info.check(value)


def label_of(name: str, info: FieldInfo | None = None) -> str:
  """What people read in place of an option's name."""
  return (info and info.label) or name.replace("_", " ").capitalize()


def bare_type(hint: Any) -> Any:
  """The type of a field without `| None`."""
  if isinstance(hint, types.UnionType):
    kinds = [k for k in typing.get_args(hint) if k is not types.NoneType]
    return kinds[0] if len(kinds) == 1 else hint
  return hint


def help_of(cls: type) -> dict[str, str]:
  """Help of every field of a dataclass, of its metadata or its docstring.

  Fields without metadata are looked up in the docstring's Attributes.
  """
  found: dict[str, str] = {}
  _, _, attributes = (cls.__doc__ or "").partition(_ATTRIBUTES)
  lines = textwrap.dedent(attributes.split("\n\n")[0]).strip()
  for entry in re.split(r"\n(?! )", lines):
    names, _, text = entry.partition(": ")
    text = " ".join(text.split())
    found |= dict.fromkeys(names.split(", "), text[:1].upper() + text[1:])
  found |= {name: info.help for name, info in options_of(cls).items()}
  return {f.name: found.get(f.name, "") for f in dataclasses.fields(cls)}


def describe(
  cls: type, values: Mapping[str, Any], where: str
) -> Iterator[tuple[str, str]]:
  """Each key of a config with its value and default, and what it is.

  Args:
    cls: the dataclass that `build` makes of it.
    values: of the config.
    where: its name, such as "config".

  Yields:
    ("config.train.keep = 3 (default 3)", help), keys of nested configs too.
  """
  hints, helps = typing.get_type_hints(cls), help_of(cls)
  for field in dataclasses.fields(cls):
    name, kind = f"{where}.{field.name}", bare_type(hints[field.name])
    value = values.get(field.name, _default(field))
    is_nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    if is_nested and value is not None:
      inner = value if isinstance(value, Mapping) else vars(value)
      yield from describe(kind, inner, name)
      continue
    default = _default(field)
    is_required = default is dataclasses.MISSING
    note = "required" if is_required else f"default {default!r}"
    yield f"{name} = {value!r} ({note})", format_message(helps[field.name])


def _default(field: dataclasses.Field) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default
