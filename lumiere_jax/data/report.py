"""The data report: which videos are used, and why the others are not."""

import collections
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import sys
import threading

from lumiere_jax.io.atomic import replacing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What became of one video.

  Attributes:
    file: its name, relative to the folder.
    used: whether clips are cut from it.
    reason: "kind: details" where it is not used.
    seconds, fps, width, height: of the video, where it could be decoded.
    frames_at_fps: its frames when resampled to the frame rate of the clips.
  """

  file: str
  used: bool
  reason: str | None = None
  seconds: float | None = None
  fps: float | None = None
  width: int | None = None
  height: int | None = None
  frames_at_fps: int | None = None

  @property
  def kind(self) -> str:
    """The reason without its details."""
    return (self.reason or "used").partition(":")[0]


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
        temporary.write_text("".join(map(_line, rows)), encoding="utf-8")

  def add(self, row: Row) -> None:
    """Appends one row and says on stderr what it says."""
    with self._lock:
      print(f"data: {row.file} dropped: {row.reason}", file=sys.stderr)
      if self.path:
        with open(self.path, "a", encoding="utf-8") as file:
          file.write(_line(row))


def _line(row: Row) -> str:
  return json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n"
