"""Parameters by path: flattening, freezing and inflation.

Inflation of an image model to a Space-Time U-Net is the union of the image
model's leaves and fresh temporal ones. What a stage trains is a regex over the
same paths.
"""

from collections.abc import Iterable
import re
from typing import Any

from flax import traverse_util
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.typing import FlatParams, Params

ADDED_LEAVES = r"(^|/)(temporal_|cond_in)"
"""Leaves that an image model does not have."""

_BIAS = re.compile(r"(^|/)temporal_.*/position_bias$")


def flatten(params: Params) -> FlatParams:
  """Nested tree -> {'module/leaf': array}, sorted by path."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return {path: flat[path] for path in sorted(flat)}


def unflatten(flat: FlatParams) -> Params:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def split(flat: FlatParams, trainable: str) -> tuple[FlatParams, FlatParams]:
  """Splits leaves into (trainable, frozen) by a regex searched in the path."""
  paths = select_paths(flat, trainable, "config.train.trainable")
  chosen = {k: flat[k] for k in paths}
  return chosen, {k: v for k, v in flat.items() if k not in chosen}


def select_paths(
  paths: Iterable[str], pattern: str, field: str, shown: str | None = None
) -> list[str]:
  """The paths that a regex matches; a UserError if there are none.

  Args:
    paths: of leaves.
    pattern: the regex, searched in each path.
    field: the config key it is from.
    shown: its value there, if that is another; for the error.
  """
  paths, field = list(paths), f"{field}={shown or pattern!r}"
  try:
    chosen = [path for path in paths if re.search(pattern, path)]
  except re.error as error:
    raise UserError(
      field, f"is not a regular expression: {error}", "correct it"
    ) from error
  if not chosen:
    raise UserError(
      field,
      "matches no parameter",
      f"parameters are called, for example, {', '.join(paths[:3])}",
    )
  return chosen


def inflate(source: FlatParams, fresh: FlatParams, name: str) -> FlatParams:
  """The leaves of `source`, and fresh temporal leaves that it does not have.

  Every spatial leaf of `fresh` must be in `source`, with the same shape.

  Args:
    source: an image model, or a video model of the same shape.
    fresh: a newly initialised model of the target shape (or its abstract
      shapes, if `source` has all leaves).
    name: of `source`, for errors.
  """
  added = [k for k in fresh if re.search(ADDED_LEAVES, k)]
  expected = {k: v for k, v in fresh.items() if k in source or k not in added}
  check_same_leaves(source, expected, name)
  return {k: source.get(k, leaf) for k, leaf in fresh.items()}


def widen_position_bias(flat: FlatParams, max_distance: int) -> FlatParams:
  """Widens temporal position biases to offsets up to `max_distance`.

  Repeats the last entries, which longer offsets shared: the model computes the
  same, and each offset can now learn its own bias. Biases that are wide enough
  stay as they are.
  """

  def widen(path: str, table: Any) -> Any:
    more = 2 * max_distance + 1 - len(table) if _BIAS.search(path) else 0
    if more <= 0:
      return table
    return np.pad(table, ((more // 2, more // 2), (0, 0)), mode="edge")

  return {path: widen(path, leaf) for path, leaf in flat.items()}


def check_same_leaves(
  given: FlatParams, expected: FlatParams, name: str
) -> None:
  """Checks that two models have the same leaves, with the same shapes."""
  shape = lambda leaf: "x".join(map(str, leaf.shape)) or "scalar"
  problems = [
    *(f"{k} is missing" for k in expected if k not in given),
    *(f"{k} is unexpected" for k in given if k not in expected),
    *(
      f"{k} is {shape(given[k])} instead of {shape(leaf)}"
      for k, leaf in expected.items()
      if k in given and given[k].shape != leaf.shape
    ),
  ]
  if problems:
    raise UserError(
      name,
      f"was made with another config.model: {first_of(problems)}",
      "use the config it was trained with",
    )


def first_of(items: list[str], limit: int = 4) -> str:
  """The first of many items for a message, and how many more there are."""
  more = f" (and {len(items) - limit} more)" if len(items) > limit else ""
  return ", ".join(items[:limit]) + more
