"""The data report: which videos are used, and why the others are not."""

import collections
from collections.abc import Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import sys
import threading

from lumiere_jax.errors import UserError
from lumiere_jax.storage.atomic import replacing

_HINT_ROWS = 3

# File names need not be valid Unicode; JSON reads the escapes back.
_ERRORS = "backslashreplace"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Whether a video, or one shot of it, is used.

  Attributes:
    file: name relative to the folder, or URL.
    used: whether clips are taken from it.
    reason: "kind: details" of why it is not used.
    start_s, end_s: of the shot in its file; None: the whole file.
    clip: frames x height x width of its clips, if used.
    seconds, fps, width, height: of the shot, if it could be decoded; a picture
      has 0 seconds and no fps.
    frames_at_fps: number of frames at the frame rate of the clips.
    left_out_s: seconds of the file that cannot be decoded, because a recording
      begins between key frames; 0 if none.
    uneven: it is used and its frame rate is not a multiple of the clips', so
      frames are taken at uneven steps, or blended.
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
  left_out_s: float = 0.0
  uneven: bool = False

  @property
  def kind(self) -> str:
    """The reason without its details."""
    return (self.reason or "used").partition(":")[0]

  def __str__(self) -> str:
    """The file, and the times of a shot."""
    if self.start_s is None:
      return self.file
    return f"{self.file} ({self.start_s:.2f} to {self.end_s:.2f} s)"


def _count_reasons(rows: Sequence[Row]) -> str:
  """Counts of reasons, most frequent first: "2 too short, 1 missing"."""
  kinds = collections.Counter(row.kind for row in rows if not row.used)
  return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


class Report:
  """Writes rows as JSON lines to `path`, if there is one.

  A video that becomes unreadable later gets a second row, which overrides the
  first.
  """

  def __init__(self, path=None):
    self.path = path and Path(path)
    self._lock = threading.Lock()

  def write(self, rows: Sequence[Row]) -> None:
    """Writes all rows and replaces an older report."""
    if self.path:
      with replacing(self.path) as temporary:
        temporary.write_text("".join(map(_line, rows)), "utf-8", _ERRORS)

  def add(self, row: Row) -> None:
    """Appends the row of a dropped video and prints it to stderr."""
    with self._lock:
      print(f"data: {row.file} dropped: {row.reason}", file=sys.stderr)
      if self.path:
        with open(self.path, "a", encoding="utf-8", errors=_ERRORS) as file:
          file.write(_line(row))


def _line(row: Row) -> str:
  return json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[Row]:
  """The rows of a report, without incomplete lines."""
  rows = []
  for line in path.read_text("utf-8", "replace").splitlines():
    with contextlib.suppress(ValueError, TypeError):
      rows.append(Row(**json.loads(line)))
  return rows


def summarise(rows: Sequence[Row], where: str, fps: float, path) -> str:
  """A summary of the report in a few lines; a UserError if no video is used.

  The report is at `path`; None: the summary lists the first reasons itself.
  """
  used = [row for row in rows if row.used]
  dropped = [row for row in rows if not row.used]
  see = f"see {path}" if path and dropped else ""
  if not used:
    raise UserError(
      f"{where}:",
      f"none of {_count(rows)} can be used: {_count_reasons(rows)} "
      f"(the first: {dropped[0]}: {dropped[0].reason})",
      see,
    )
  clips = collections.Counter(str(row.clip) for row in used)
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
      f"data: {uneven} of these have a frame rate that is not a multiple of "
      f"{fps:g} fps: their frames are taken at uneven steps, or blended if "
      "resample=blend"
    )
  if dropped:
    counts = f"data: dropped {_count_reasons(rows)}"
    lines.append(f"{counts}; {see}" if see else counts)
  if not path:
    shown = dropped[:_HINT_ROWS]
    lines += [f"data:   {row}: {row.reason}" for row in shown]
  return "\n".join(lines)


def _count(rows: Sequence[Row]) -> str:
  files = len({row.file for row in rows})
  parts = f"{len(rows)} parts of " if len(rows) > files else ""
  return f"{parts}{files} files"
