"""Verdicts on single videos, and the scores that many of them make."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses

from lumiere_jax.metrics.intervals import Score, mean, share
from lumiere_jax.pipelines.told import Clip

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
class Judged:
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


Hear = Callable[[Judged], None]
"""Is told every video when it is judged."""


def ignore(judged: Judged) -> None:
  """Hears nothing."""
  del judged


class Sheet:
  """Verdicts by the row of the table that they count for."""

  def __init__(self, hear: Hear = ignore):
    self._hear = hear
    self._made: dict[str, list[Verdict]] = {}
    self._real: dict[str, list[Verdict]] = {}

  def made(self, judged: Judged) -> None:
    """Takes the verdict on a made video, and tells who hears of it."""
    self._made.setdefault(judged.row, []).append(judged.verdict)
    self._hear(judged)

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
