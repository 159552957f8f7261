"""Ratios of paired measurements, their goals, and regressions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Ratio = dict[str, Any]
Row = dict[str, Any]
Place = tuple[str, ...]
"""(section, row, name) of a ratio, or (section, row)."""
WORSE = 1.1
"""Tolerated factor of a regression."""


def summary(
  a: Sequence[float],
  b: Sequence[float],
  *,
  times: float = 1.0,
  goal: float | None = None,
  better: str = "lower",
) -> Ratio:
  """Median and quartiles of times * a / b, pair by pair.

  Args:
    a: measurements that alternate with `b`.
    b: as many.
    times: a constant factor.
    goal: to reach; None: no goal.
    better: 'lower' or 'higher'.
  """
  quotients = times * np.asarray(a) / np.asarray(b)
  median, low, high = map(float, np.quantile(quotients, (0.5, 0.25, 0.75)))
  return {
    "median": median,
    "quartiles": [low, high],
    "goal": goal,
    "better": better,
  }


def reached(value: float, goal: float, better: str = "lower") -> bool:
  """Whether a value is at least as good as its goal."""
  return value <= goal if better == "lower" else value >= goal


def worse(new: Ratio, old: Ratio) -> bool:
  """Whether a ratio got worse by more than 10%, beyond noise.

  The better quartile of the new pairs must be that much worse than the old
  median: medians alone differ by 5 to 10% from run to run.
  """
  low, high = new["quartiles"]
  if new["better"] == "lower":
    return low > WORSE * old["median"]
  return high < old["median"] / WORSE


def compare(section: str, rows: list[Row], old: list[Row]) -> dict[Place, str]:
  """Describes each ratio that got worse or was not committed.

  Args:
    section: name of the section.
    rows: measured now.
    old: committed rows.
  """
  before = {row["name"]: row["ratios"] for row in old if "ratios" in row}
  missing = "is not in the committed results; run make bench"
  found = {}
  for row in rows:
    if row["name"] not in before:
      found[section, row["name"]] = missing
      continue
    for name, new in row["ratios"].items():
      place = (section, row["name"], name)
      was = before[row["name"]].get(name)
      if was is None:
        found[place] = missing
      elif worse(new, was):
        low, high = new["quartiles"]
        found[place] = (
          f"got worse, {was['median']:.2f} -> {new['median']:.2f} ({low:.2f} "
          f"to {high:.2f}); {new['better']} is better"
        )
  return found
