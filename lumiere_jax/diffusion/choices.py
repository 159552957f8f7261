"""Picks a named option, or says which names there are."""

from collections.abc import Collection, Mapping
from typing import Any

from lumiere_jax.typing import UserError, build, suggest


def check_choice(what: str, name: str, known: Collection[str]) -> None:
  """Raises a UserError unless `name` is one of the `known` names of `what`."""
  if name not in known:
    raise UserError(
      f"unknown {what} {name!r}{suggest(name, known)}; "
      f"use one of: {', '.join(known)}"
    )


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
