"""Ratios of paired measurements, their goals, and whether one got worse."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Ratio = dict[str, Any]
WORSE = 1.1
"""A ratio may get worse by this factor."""


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
    a: measured by turns with `b`.
    b: as many.
    times: a constant factor.
    goal: to be reached; None: there is none.
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
  """Whether a ratio got worse by more than 10%, noise aside.

  The better quartile of the new pairs has to be that much worse than the old
  median: medians alone differ by 5 to 10% from run to run.
  """
  low, high = new["quartiles"]
  if new["better"] == "lower":
    return low > WORSE * old["median"]
  return high < old["median"] / WORSE
