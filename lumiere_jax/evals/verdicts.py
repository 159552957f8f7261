"""Verdicts on single videos, and scores with confidence intervals over many."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
from scipy import special

from lumiere_jax.typing import Clip

CONFIDENCE = 0.95
SHARE, MEAN = "share", "mean"
ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """A share or a mean.

  Attributes:
    kind: 'share', in [0, 1], or 'mean'.
    value: the estimate.
    low, high: ends of its 95% confidence interval.
    count: sample size.
  """

  kind: str
  value: float
  low: float
  high: float
  count: int


def share(verdicts: Sequence[bool]) -> Score:
  """The share of True verdicts, with Wilson's interval."""
  right, count = sum(verdicts), len(verdicts)
  low, high = wilson(right, count)
  return Score(kind=SHARE, value=right / count, low=low, high=high, count=count)


def mean(values: Sequence[float]) -> Score:
  """The mean of at least two values, with Student's t interval.

  Not a bootstrap, which is too narrow for samples as small as these.
  """
  count = len(values)
  if count < 2:
    raise ValueError(f"{count} values have no interval")
  middle = float(np.mean(values))
  error = float(np.std(values, ddof=1)) / math.sqrt(count)
  reach = error * float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2))
  low, high = middle - reach, middle + reach
  return Score(kind=MEAN, value=middle, low=low, high=high, count=count)


def wilson(right: int, count: int) -> tuple[float, float]:
  """Wilson's score interval of a proportion (E. B. Wilson, 1927).

  It stays in [0, 1] and has a width at 0 and 1 too, unlike the normal
  approximation.
  """
  if not 0 <= right <= count or not count:
    raise ValueError(f"{right} of {count} is not a proportion")
  z = float(special.ndtri((1 + CONFIDENCE) / 2))
  p, spread = right / count, z**2 / count
  middle = (p + spread / 2) / (1 + spread)
  reach = z * math.sqrt(p * (1 - p) / count + spread / (4 * count))
  reach /= 1 + spread
  # At 0 and 1 the ends are exact up to rounding.
  return max(0.0, middle - reach), min(1.0, middle + reach)


Row = dict[str, Score]
"""Column -> score."""
Table = dict[str, Row]
"""Row name -> its scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What was found in one video.

  Attributes:
    right: checked attribute -> whether it is right. Attributes that do not
      apply to the video are left out.
    numbers: measured quantity -> value; names end in their unit.
  """

  right: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """A generated video and the verdict on it.

  Attributes:
    row: of the table that it counts for.
    prompt: of the video.
    seed: of its noise.
    video: uint8 (t, h, w, 3).
    verdict: on the video.
    source: the video or picture (one frame) it was conditioned on; None: the
      prompt alone.
  """

  row: str
  prompt: str
  seed: int
  video: Clip
  verdict: Verdict
  source: Clip | None = None


def scores(verdicts: Sequence[Verdict]) -> Row:
  """Shares of what is right and means of what was measured.

  Each is taken over the verdicts that have it. A number that a single verdict
  has is left out: it has no interval.
  """
  rights: dict[str, list[bool]] = defaultdict(list)
  numbers: dict[str, list[float]] = defaultdict(list)
  for verdict in verdicts:
    for name, right in verdict.right.items():
      rights[name].append(right)
    for name, number in verdict.numbers.items():
      numbers[name].append(number)
  return {name: share(found) for name, found in rights.items()} | {
    name: mean(found) for name, found in numbers.items() if len(found) > 1
  }


def with_all(right: Mapping[str, bool]) -> dict[str, bool]:
  """Adds 'all': whether every attribute is right."""
  return {**right, ALL: all(right.values())}
