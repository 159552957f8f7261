"""Verdicts on single videos, and scores with intervals over many."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math

import numpy as np
from scipy import special

from lumiere_jax.typing import Clip

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


ALL = "all"


Row = dict[str, Score]
"""Column, what was scored -> its score."""


Table = dict[str, Row]
"""Row, what it was scored on -> its scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What is found of one video.

  Attributes:
    right: what was looked at -> whether it is right. What a video cannot
      have right or wrong is left out.
    numbers: what was measured -> how much; names end in their unit.
  """

  right: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """A made video and the verdict on it.

  Attributes:
    row: of the table that it counts for.
    prompt: it was made of.
    seed: of its noise.
    video: uint8 (t, h, w, 3).
    verdict: on it.
    source: the video or picture (of one frame) it was made from; None: the
      prompt alone.
  """

  row: str
  prompt: str
  seed: int
  video: Clip
  verdict: Verdict
  source: Clip | None = None


OnResult = Callable[[Result], None]
"""Is told every video when it is judged."""


def ignore(judged: Result) -> None:
  """Hears nothing."""
  del judged


class Results:
  """Verdicts by the row of the table that they count for."""

  def __init__(self, on_result: OnResult = ignore):
    self._on_result = on_result
    self._made: dict[str, list[Verdict]] = {}
    self._real: dict[str, list[Verdict]] = {}

  def made(self, judged: Result) -> None:
    """Takes the verdict on a made video, and tells who hears of it."""
    self._made.setdefault(judged.row, []).append(judged.verdict)
    self._on_result(judged)

  def real(self, row: str, verdict: Verdict) -> None:
    """Takes the verdict on a real render, of the same scene as in `row`."""
    self._real.setdefault(row, []).append(verdict)

  def table(self) -> Table:
    """Every row, and beside it that of real renders, if there are any."""
    table = {}
    for row, verdicts in self._made.items():
      table[row] = scores(verdicts)
      if row in self._real:
        table[f"{row}, real renders"] = scores(self._real[row])
    return table


def scores(verdicts: Sequence[Verdict]) -> Row:
  """Shares of what is right and means of what was measured.

  Each is taken over the verdicts that say it; a number that one alone says is
  left out, for it has no interval.
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
  """Adds whether all of it is right."""
  return {**right, ALL: all(right.values())}


def _names(said: Iterable[Mapping[str, object]]) -> list[str]:
  return list(dict.fromkeys(name for names in said for name in names))
