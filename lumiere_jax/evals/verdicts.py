"""Verdicts on single videos, and scores with confidence intervals over many."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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

  Not a bootstrap, which is too narrow for samples as small as these.

  Raises:
    ValueError: fewer than two values.
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

  It stays in [0, 1] and has a width at 0 and 1 too, unlike the normal
  approximation.

  Raises:
    ValueError: the count is 0, or not at least `right`.
  """
  if not 0 <= right <= count or not count:
    raise ValueError(f"{right} of {count} is no proportion")
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


OnResult = Callable[[Result], object]
"""Called with every generated video and its verdict."""


class Results:
  """Collects verdicts by the row of the table that they count for."""

  def __init__(self, on_result: OnResult = lambda result: None):
    self._on_result = on_result
    self._generated: dict[str, list[Verdict]] = {}
    self._real: dict[str, list[Verdict]] = {}
    self._summary: dict[str, list[Verdict]] = {}

  def generated(self, result: Result) -> None:
    """Adds a generated video's verdict, and calls `on_result`."""
    self._generated.setdefault(result.row, []).append(result.verdict)
    self._on_result(result)

  def real(self, row: str, verdict: Verdict) -> None:
    """Adds the verdict on a real render of a scene of `row`."""
    self._real.setdefault(row, []).append(verdict)

  def summary(self, row: str, verdict: Verdict) -> None:
    """Adds a verdict on several videos together, to a row at the end."""
    self._summary.setdefault(row, []).append(verdict)

  def table(self) -> Table:
    """Scores of all rows, each followed by its real renders, if any."""
    table = {}
    for row, verdicts in self._generated.items():
      table[row] = scores(verdicts)
      if row in self._real:
        table[f"{row}, real renders"] = scores(self._real[row])
    return table | {row: scores(v) for row, v in self._summary.items()}


def scores(verdicts: Sequence[Verdict]) -> Row:
  """Shares of what is right and means of what was measured.

  Each is taken over the verdicts that have it. A number that a single verdict
  has is left out: it has no interval.
  """
  row: Row = {}
  for name in _names(verdict.right for verdict in verdicts):
    row[name] = share([v.right[name] for v in verdicts if name in v.right])
  for name in _names(verdict.numbers for verdict in verdicts):
    values = [v.numbers[name] for v in verdicts if name in v.numbers]
    if len(values) > 1:
      row[name] = mean(values)
  return row


def with_all(right: Mapping[str, bool]) -> dict[str, bool]:
  """Adds 'all': whether every attribute is right."""
  return {**right, ALL: all(right.values())}


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
  return list(dict.fromkeys(name for mapping in mappings for name in mapping))
