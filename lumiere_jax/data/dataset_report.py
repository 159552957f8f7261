"""The data report: which videos are used, and why the others are not."""

import collections
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import sys
import threading

from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.errors import UserError
from lumiere_jax.storage.atomic import replacing

_HINT_ROWS = 3


# Names of files need not be Unicode; JSON reads what becomes of them.
_ERRORS = "backslashreplace"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What became of one video, or of a part of it between cuts.

  Attributes:
    file: its name, relative to the folder, or its URL.
    used: whether clips are cut from it.
    reason: "kind: details" where it is not used.
    start_s, end_s: of the part in its file; None: all of it.
    clip: frames x height x width of its clips, where it is used.
    seconds, fps, width, height: of the part, where it could be decoded; a
      picture has 0 seconds and no fps.
    frames_at_fps: its frames when resampled to the frame rate of the clips.
    uneven: it is used, and its frame rate is no multiple of that of the clips:
      the steps between frames alternate, or frames are blended.
  """

  file: str
  used: bool
  reason: str | None = None
  start_s: float | None = None
  end_s: float | None = None
  clip: str | None = None
  seconds: float | None = None
  fps: float | None = None
  width: int | None = None
  height: int | None = None
  frames_at_fps: int | None = None
  uneven: bool = False

  @property
  def kind(self) -> str:
    """The reason without its details."""
    return (self.reason or "used").partition(":")[0]

  def __str__(self) -> str:
    """The file, and the times of a part."""
    if self.start_s is None:
      return self.file
    return f"{self.file} ({self.start_s:.2f} to {self.end_s:.2f} s)"


def shape_name(spec: ClipSpec) -> str:
  """E.g. "80x96x160": frames, height, width."""
  return "x".join(map(str, (spec.num_frames, *spec.resolution)))


def count_reasons(rows: Sequence[Row]) -> str:
  """E.g. "2 too short, 1 missing", the most frequent first."""
  kinds = collections.Counter(row.kind for row in rows if not row.used)
  return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


class Report:
  """Rows as JSON lines in `path`; nothing is written without a path.

  A video that becomes unreadable later gets a second row, which counts.
  """

  def __init__(self, path=None):
    self.path = path and Path(path)
    self._lock = threading.Lock()

  def write(self, rows: Sequence[Row]) -> None:
    """Writes all rows, in place of an older report."""
    if self.path:
      with replacing(self.path) as temporary:
        temporary.write_text("".join(map(_line, rows)), "utf-8", _ERRORS)

  def add(self, row: Row) -> None:
    """Appends one row and says on stderr what it says."""
    with self._lock:
      print(f"data: {row.file} dropped: {row.reason}", file=sys.stderr)
      if self.path:
        with open(self.path, "a", encoding="utf-8", errors=_ERRORS) as file:
          file.write(_line(row))


def _line(row: Row) -> str:
  return json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n"


def publish(rows: Sequence[Row], where: str, fps: float, path) -> Report:
  """Writes the report and prints its summary, to stderr.

  Args:
    rows: one for each video or part of one.
    where: what they are of.
    fps: of the clips.
    path: where to write it; None: nowhere.

  Raises:
    UserError: none can be used.
  """
  report = Report(path)
  report.write(rows)
  print(summarise(rows, where, fps, report.path), file=sys.stderr)
  return report


def summarise(rows: Sequence[Row], where: str, fps: float, path) -> str:
  """What became of the videos of a folder, in a few lines.

  Args:
    rows: one for each video or part of one.
    where: the folder.
    fps: of the clips.
    path: of the report; None: some reasons are given here instead.

  Raises:
    UserError: none can be used.
  """
  used, dropped = (
    [row for row in rows if row.used == wanted] for wanted in (True, False)
  )
  see = f"; see {path}" if path and dropped else ""
  if not used:
    raise UserError(
      f"{where}:",
      f"none of {_count(rows)} can be used: {count_reasons(rows)} "
      f"(the first: {dropped[0]}: {dropped[0].reason}){see}",
    )
  clips = collections.Counter(row.clip for row in used)
  shapes = ", ".join(
    f"{shape} ({n})" if len(clips) > 1 else shape
    for shape, n in clips.most_common()
  )
  lines = [
    f"data: {len(used)} of {_count(rows)} in {where} used for clips of "
    f"{shapes} at {fps:g} fps"
  ]
  if uneven := sum(row.uneven for row in used):
    lines.append(
      f"data: {uneven} of these have a frame rate that is no multiple of "
      f"{fps:g} fps: their frames are taken at uneven steps, or blended if "
      "resample=blend"
    )
  if dropped:
    lines.append(f"data: dropped {count_reasons(rows)}{see}")
  if not path:
    shown = dropped[:_HINT_ROWS]
    lines += [f"data:   {row}: {row.reason}" for row in shown]
  return "\n".join(lines)


def _count(rows: Sequence[Row]) -> str:
  files = len({row.file for row in rows})
  parts = f"{len(rows)} parts of " if len(rows) > files else ""
  return f"{parts}{files} files"
