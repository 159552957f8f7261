"""Parameter trees by path: flatten, split, inflate, compare.

Inflation is the union of the image model's leaves and fresh temporal ones;
what a stage trains is one regular expression over the same paths.
"""

from collections.abc import Iterable
import re
from typing import Any

from flax import traverse_util
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.typing import FlatParams, Params

_TEMPORAL = re.compile(r"(^|/)temporal_")


_ADDED = re.compile(r"(^|/)(temporal_|cond_in)")


def is_temporal(path: str) -> bool:
  """Whether a parameter or module path is of a temporal layer.

  Adapters of a parameter ('lora/PATH/a') count with it.
  """
  return bool(_TEMPORAL.search(path))


def is_spatial(path: str) -> bool:
  """Whether an image model has it too: neither temporal nor `cond_in`."""
  return not _ADDED.search(path)


def flatten(params: Params) -> FlatParams:
  """Nested tree -> {'module/leaf': array}, sorted by path."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return {path: flat[path] for path in sorted(flat)}


def unflatten(flat: FlatParams) -> Params:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def split(flat: FlatParams, trainable: str) -> tuple[FlatParams, FlatParams]:
  """Splits leaves into (trainable, frozen) by a regex searched in the path.

  Raises:
    UserError: the expression is malformed or matches no leaf.
  """
  try:
    pattern = re.compile(trainable)
  except re.error as error:
    raise UserError(
      f"config.train.trainable={trainable!r}",
      f"is no regular expression: {error}",
    ) from error
  chosen = {k: v for k, v in flat.items() if pattern.search(k)}
  if not chosen:
    raise UserError(
      f"config.train.trainable={trainable!r} matches no parameter; "
      "leaves look like " + ", ".join(list(flat)[:3])
    )
  return chosen, {k: v for k, v in flat.items() if k not in chosen}


def inflate(source: FlatParams, fresh: FlatParams, name: str) -> FlatParams:
  """Leaves of `source` where it has them, fresh temporal leaves elsewhere.

  Args:
    source: an image model, or a video model of the same shape to go on from.
    fresh: a newly initialised model of the shape wanted (or its abstract
      shapes; the added leaves must then all be in `source`).
    name: what `source` is, for the error.

  Raises:
    UserError: a spatial leaf of `fresh` is not in `source`, `source` has a
      leaf that `fresh` lacks, or shapes differ; leaves are named.
  """
  expected = {k: v for k, v in fresh.items() if k in source or is_spatial(k)}
  check_same_leaves(source, expected, name)
  return {k: source.get(k, leaf) for k, leaf in fresh.items()}


def widen_position_bias(flat: FlatParams, max_distance: int) -> FlatParams:
  """Leaves with temporal position biases of offsets up to `max_distance`.

  Longer offsets shared the last entries of a bias, which are repeated: the
  model is the same on any video, and each offset can now learn its own. Biases
  that are as wide or wider stay.
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
  """Raises a UserError naming the leaves in which two models differ."""
  shape = lambda leaf: "x".join(map(str, leaf.shape)) or "scalar"
  problems = [
    *(f"lacks {k}" for k in expected if k not in given),
    *(
      f"has {k}, which the config does not" for k in given if k not in expected
    ),
    *(
      f"{k} is {shape(given[k])}, the config wants {shape(leaf)}"
      for k, leaf in expected.items()
      if k in given and given[k].shape != leaf.shape
    ),
  ]
  if problems:
    raise UserError(
      name,
      f"was made with another config.model: {_some(problems)}",
      "use the config it was trained with",
    )


def _some(items: Iterable[str], limit: int = 4) -> str:
  items = list(items)
  more = f" (and {len(items) - limit} more)" if len(items) > limit else ""
  return "; ".join(items[:limit]) + more
