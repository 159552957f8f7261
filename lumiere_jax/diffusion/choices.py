"""Checks what was chosen, and builds it."""

from collections.abc import Mapping
from typing import Any

from lumiere_jax.typing import UserError, build, check_choice


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
