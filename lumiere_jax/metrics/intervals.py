"""Shares and means, each with the interval that its few samples leave it."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
from scipy import special

CONFIDENCE = 0.95
SHARE, MEAN = "share", "mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """A share or a mean.

  Attributes:
    kind: 'share', in [0, 1], or 'mean'.
    value: itself.
    low, high: the ends of its 95% interval.
    count: how many it was taken over.
  """

  kind: str
  value: float
  low: float
  high: float
  count: int


def share(verdicts: Sequence[bool]) -> Score:
  """How many of the verdicts are True, with Wilson's interval.

  Raises:
    ValueError: there is none.
  """
  low, high = wilson(sum(verdicts), len(verdicts))
  return Score(
    kind=SHARE,
    value=sum(verdicts) / len(verdicts),
    low=low,
    high=high,
    count=len(verdicts),
  )


def mean(values: Sequence[float]) -> Score:
  """The mean, with Student's t interval.

  Not a bootstrap, which is too narrow for samples as small as these and would
  need draws of its own.

  Raises:
    ValueError: there are fewer than two, whose spread nothing tells.
  """
  count = len(values)
  if count < 2:
    raise ValueError(f"{count} values have no interval")
  middle = float(np.mean(values))
  error = float(np.std(values, ddof=1)) / math.sqrt(count)
  reach = error * float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2))
  return Score(
    kind=MEAN,
    value=middle,
    low=middle - reach,
    high=middle + reach,
    count=count,
  )


def wilson(right: int, count: int) -> tuple[float, float]:
  """Wilson's score interval of a proportion (E. B. Wilson, 1927).

  It keeps to [0, 1] and has a width at 0 and 1 too, where a normal one has
  none.

  Raises:
    ValueError: nothing was counted.
  """
  if not 0 <= right <= count or not count:
    raise ValueError(f"{right} of {count} is no proportion")
  z = float(special.ndtri((1 + CONFIDENCE) / 2))
  p, spread = right / count, z**2 / count
  middle = (p + spread / 2) / (1 + spread)
  reach = z * math.sqrt(p * (1 - p) / count + spread / (4 * count))
  reach /= 1 + spread
  # At 0 and 1 the ends are exact, but for rounding.
  return max(0.0, middle - reach), min(1.0, middle + reach)
