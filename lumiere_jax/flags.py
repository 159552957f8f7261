"""Command-line flags, made from the options of dataclasses."""

from collections.abc import Callable, Collection, Mapping
import contextlib
import dataclasses
import typing
from typing import Any, TypeVar

from absl import flags

from lumiere_jax.errors import format_message
from lumiere_jax.options import (
  FieldInfo,
  bare_type,
  help_of,
  options_of,
  setting,
)
from lumiere_jax.parallel import distributed
from lumiere_jax.parallel.mesh import MeshConfig

flags.disclaim_key_flags()  # --help lists the flags under the entry module.

Flags = dict[str, flags.FlagHolder]
"""Field -> its flag."""

T = TypeVar("T")


class _TextParser(flags.ArgumentParser):
  """Reads a flag by a function of its text."""

  def __init__(self, parse: Callable[[str], Any]):
    self._parse = parse

  def parse(self, argument: Any) -> Any:
    """Absl reports a ValueError with the flag's name and value."""
    return self._parse(argument) if isinstance(argument, str) else argument


def define(
  *classes: type,
  only: Collection[str] | None = None,
  names: Mapping[str, str] | None = None,
  into: flags.FlagValues = flags.FLAGS,
) -> Flags:
  """Defines a flag for each option of dataclasses; `read` makes one of them.

  An option of several classes is one flag.

  Args:
    classes: dataclasses with fields made by `options.setting`.
    only: fields to define flags for; None: all options. Fields that are not
      made by `setting` have the help of the class's docstring.
    names: field -> flag, where they differ from the option's name.
    into: where the flags are registered.
  """
  holders: Flags = {}
  for cls in classes:
    hints = typing.get_type_hints(cls)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    options = options_of(cls)
    for field in options if only is None else only:
      if field not in holders:
        info = options.get(field) or FieldInfo(
          name=field, help=help_of(cls)[field]
        )
        name = (names or {}).get(field, info.name)
        kind = bare_type(hints[field])
        holders[field] = _define(name, kind, defaults[field], info, into)
  return holders


def read(cls: type[T], holders: Flags, **rest: Any) -> T:
  """The dataclass `cls` with the values of its flags, and `rest`."""
  return cls(**values(holders), **rest)


def values(holders: Flags) -> dict[str, Any]:
  """Field -> value; lists as tuples."""
  found = {field: holder.value for field, holder in holders.items()}
  return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def _define(
  name: str, kind: Any, default: Any, info: FieldInfo, into: flags.FlagValues
) -> flags.FlagHolder:
  text = format_message(info.help, "--{}".format)
  if default is dataclasses.MISSING:
    default = {str: ""}.get(kind)
  if info.parse or kind in _PARSERS:
    parser = _TextParser(info.parse or _PARSERS[kind])
    return flags.DEFINE(parser, name, _written(default), text, into)
  if typing.get_origin(kind) is tuple:
    define_list = flags.DEFINE_list if info.comma else flags.DEFINE_multi_string
    return define_list(name, list(default or ()), text, into)
  simple: dict[Any, Callable[..., flags.FlagHolder]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  return simple[kind](name, default, text, flag_values=into)


def _written(default: Any) -> str | None:
  """A default as one would write it, so that --help shows it so."""
  if isinstance(default, tuple):
    return ",".join(f"{number:g}" for number in default)
  return default


def _numbers(
  kind: type, count: int, example: str
) -> Callable[[str], tuple[Any, ...]]:
  def parse(text: str) -> tuple[Any, ...]:
    try:
      numbers = tuple(map(kind, text.split(",")))
    except ValueError:
      numbers = ()
    if len(numbers) != count:
      words = {2: "two", 3: "three"}[count]
      raise ValueError(f"{words} numbers are needed, such as {example}")
    return numbers

  return parse


def _mesh(text: str) -> MeshConfig:
  data, fsdp, space = _numbers(int, 3, "4,1,2")(text)
  return MeshConfig(data=data, fsdp=fsdp, space=space)


_PARSERS: dict[Any, Callable[[str], Any]] = {
  tuple[float, float]: _numbers(float, 2, "0.2,0.8"),
  tuple[int, int]: _numbers(int, 2, "128,384"),
  MeshConfig: _mesh,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
  """How the processes of a run find each other."""

  coordinator: str | None = setting(
    None,
    "HOST:PORT of process 0, for processes started by hand. Default: "
    "LUMIERE_COORDINATOR, else what SLURM or the TPU provides, else a single "
    "process.",
  )
  num_processes: int | None = setting(
    None,
    "Number of processes, with --coordinator. Default: LUMIERE_NUM_PROCESSES.",
  )
  process_id: int | None = setting(
    None,
    "Index of this process, from 0. Default: LUMIERE_PROCESS_ID, else "
    "JOB_COMPLETION_INDEX.",
  )


def joined(holders: Flags) -> contextlib.AbstractContextManager[None]:
  """`distributed.joined` with the flags of `Hosts`."""
  return distributed.joined(**values(holders))
