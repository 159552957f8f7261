"""What every room may share: array aliases, `Cond`, errors, checked configs.

This is the ground floor: it imports no other room.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import math
import typing
from typing import Any, TypeVar

from beartype import beartype
from flax import struct
import jax
from jaxtyping import Array, Bool, Float, jaxtyped

Video = Float[Array, "b t h w c"]
PerSample = Float[Array, "b"]
Params = dict[str, Any]
"""A nested tree of parameters as Flax linen makes it."""
FlatParams = dict[str, Any]
"""The same leaves in one flat dict, keyed by 'path/of/modules/leaf'."""

typechecked = jaxtyped(typechecker=beartype)
"""Decorator: check shapes and types of a public function when it is called."""


class UserError(Exception):
  """Something the user gave cannot be used.

  The message is one line: which input, what was wrong with it, and the mend.
  Entry modules print it without a stack trace and exit with code 2.
  """


@struct.dataclass
class Cond:
  """Everything a network is conditioned on, besides the noisy video.

  Attributes:
    text: (b, l, e) float, the text encoder's output.
    text_mask: (b, l) bool, True where a token is real; None: all are (as IF).
    frames: (b, t, h, w, c) float, conditioning pixels in [-1, 1]: the
      up-sampled low-resolution video (c=3) of a super-resolution model, then
      the masked video (3) and the mask (1; 1 = given) of a conditional one.
    noise_level: (b,) float in [0, 1], the schedule time of the noise put on
      the low-resolution video (Imagen's aug_level; super-resolution only).
  """

  text: Float[Array, "b l e"]
  text_mask: Bool[Array, "b l"] | None = None
  frames: Video | None = None
  noise_level: PerSample | None = None

  def map_frames(self, fn) -> "Cond":
    """Applies `fn` to the leaves that have a time axis (axis 1)."""
    return self.replace(frames=jax.tree.map(fn, self.frames))

  def map_samples(self, fn) -> "Cond":
    """Applies `fn` to every leaf; all have the batch as their axis 0."""
    return jax.tree.map(fn, self)


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
