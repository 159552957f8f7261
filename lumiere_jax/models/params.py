"""Parameters by path: flattening, freezing and inflation.

Inflation of an image model to a Space-Time U-Net is the union of the image
model's leaves and fresh temporal ones. What a stage trains is a regex over the
same paths.
"""

from collections.abc import Callable, Iterable, Mapping
import re
from typing import Any

from flax import traverse_util
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.typing import FlatParams, Params

_TEMPORAL = re.compile(r"(^|/)temporal_")

_ADDED = re.compile(r"(^|/)(temporal_|cond_in)")


def is_temporal(path: str) -> bool:
  """Whether a parameter or module is in a temporal layer.

  This includes adapters of a parameter ('lora/PATH/a').
  """
  return bool(_TEMPORAL.search(path))


def is_spatial(path: str) -> bool:
  """Whether an image model has the parameter: not temporal, not `cond_in`."""
  return not _ADDED.search(path)


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
  paths: Iterable[str],
  pattern: str,
  field: str,
  named: Mapping[str, Callable[[str], bool]] | None = None,
) -> list[str]:
  """The paths that match a pattern; a UserError if there are none.

  The pattern, of the config key `field`, is a regex to search in each path, or
  the name of one of the `named` predicates.
  """
  named, paths, field = named or {}, list(paths), f"{field}={pattern!r}"
  try:
    matches = named.get(pattern) or re.compile(pattern).search
  except re.error as error:
    raise UserError(
      field,
      f"is not a regular expression: {error}",
      " ".join(["correct it", *(f"or give {name!r}" for name in named)]),
    ) from error
  chosen = [path for path in paths if matches(path)]
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
    fresh: a new model (or its shapes, if `source` has all leaves).
    name: of `source`, for errors.
  """
  expected = {k: v for k, v in fresh.items() if k in source or is_spatial(k)}
  check_same_leaves(source, expected, name)
  return {k: source.get(k, leaf) for k, leaf in fresh.items()}


def widen_position_bias(flat: FlatParams, max_distance: int) -> FlatParams:
  """Widens temporal position biases to offsets up to `max_distance`.

  Repeats the last entries, which longer offsets shared: the model computes the
  same, and each offset can now learn its own bias. Biases that are wide enough
  stay as they are.
  """

  def widen(path: str, table: Any) -> Any:
    if not (is_temporal(path) and path.endswith("/position_bias")):
      return table
    more = 2 * max_distance + 1 - len(table)
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
