"""The `files` source: a folder of captioned videos of any kind.

Every video is decoded to its end once, when the folder is opened. What cannot
be used is dropped with its reason; see `report`.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import os
from pathlib import Path
import sys
import threading

import numpy as np
import tqdm

from lumiere_jax.data.captions import read_captions, visible_files
from lumiere_jax.data.report import Report, Row, count_reasons
from lumiere_jax.data.source import Clip, ClipSpec, Group, UnreadableClip
from lumiere_jax.io.container import VideoError
from lumiere_jax.io.decode import VideoInfo, probe, read_clip
from lumiere_jax.typing import UserError

# Only to notice videos that have no caption; any other ending is read too.
_VIDEO_ENDINGS = {
  *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
  *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
}
_REPORT_HINT_ROWS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """A video that clips are cut from."""

  file: str
  caption: str
  info: VideoInfo


class FilesSource:
  """Clips of captioned video files, one clip of each in an epoch."""

  def __init__(
    self,
    folder: Path,
    spec: ClipSpec,
    videos: Sequence[Video],
    report: Report,
  ):
    """Takes videos that have been probed; see `open`."""
    self.folder, self.spec, self.videos = folder, spec, tuple(videos)
    self._report = report
    self._broken: set[str] = set()
    self._lock = threading.Lock()

  @classmethod
  def open(
    cls,
    folder,
    spec: ClipSpec,
    *,
    report_path=None,
    num_threads: int | None = None,
  ) -> "FilesSource":
    """Reads the captions of a folder and probes its videos.

    Prints a summary to stderr, with a progress bar on a terminal.

    Args:
      folder: videos and captions; see `captions` for how to write those.
      spec: the size of the clips.
      report_path: where to write data_report.jsonl; None: nowhere.
      num_threads: that probe; None: as many as there are cores.

    Raises:
      UserError: no captions can be read, or no video can be used.
    """
    folder = Path(folder)
    captions = read_captions(folder)
    bare = [_name(folder, p) for p in visible_files(folder)]
    bare = [n for n in bare if Path(n).suffix.lower() in _VIDEO_ENDINGS]
    names = sorted({*captions, *bare})
    look = lambda name: _look(folder, name, captions.get(name), spec)
    with futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
      bar = tqdm.tqdm(
        pool.map(look, names), "probing videos", len(names), disable=None
      )
      found = list(bar)
    rows = [row for row, _ in found]
    report = Report(report_path)
    report.write(rows)
    _summarise(folder, spec, rows, report)
    videos = [video for _, video in found if video is not None]
    return cls(folder, spec, videos, report)

  def __len__(self) -> int:
    return len(self.videos)

  @property
  def groups(self) -> tuple[Group, ...]:
    """All clips are of one shape."""
    return (Group(indices=range(len(self))),)

  def captions(self, index: int) -> tuple[str, ...]:
    """What video `index` shows."""
    return (self.videos[index].caption,)

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    """Cuts a clip out of video `index`.

    Args:
      index: of the video.
      rng: draws where the clip begins; None: the middle of the video.

    Returns:
      (t, h, w, 3) uint8, RGB.

    Raises:
      UnreadableClip: the file vanished or broke since it was probed. This is
        printed and reported the first time.
    """
    video = self.videos[index]
    if video.file in self._broken:
      raise UnreadableClip(f"{video.file}: was dropped before")
    spare_s = max(0.0, video.info.duration_s - self.spec.seconds)
    at = 0.5 if rng is None else rng.random()
    try:
      return read_clip(
        self.folder / video.file,
        start_s=at * spare_s,
        num_frames=self.spec.num_frames,
        fps=self.spec.fps,
        resolution=self.spec.resolution,
      )
    except VideoError as error:
      self._drop(video.file, error.reason)
      raise UnreadableClip(str(error)) from error

  def _drop(self, file: str, reason: str) -> None:
    with self._lock:
      if file in self._broken:
        return
      self._broken.add(file)
    self._report.add(Row(file=file, used=False, reason=reason))

  def split(self, fraction: float = 0.1) -> tuple["FilesSource", "FilesSource"]:
    """Parts the videos into (train, held out), by a hash of their names.

    Adding videos moves none of the others. Of two videos or more, each part
    has at least one, unless `fraction` is 0; a single one is for training.

    Args:
      fraction: of the videos to hold out, in [0, 1).

    Raises:
      UserError: fraction is out of range.
    """
    if not 0 <= fraction < 1:
      raise UserError(
        f"held-out fraction is {fraction}; give 0 or more, below 1"
      )
    ordered = sorted(self.videos, key=lambda video: _rank(video.file))
    count = sum(_rank(video.file) < fraction for video in ordered)
    count = min(max(count, fraction > 0), len(ordered) - 1)
    held_out = {video.file for video in ordered[:count]}
    part = lambda inside: FilesSource(
      self.folder,
      self.spec,
      [v for v in self.videos if (v.file in held_out) == inside],
      self._report,
    )
    return part(False), part(True)


def _name(folder: Path, path: Path) -> str:
  return path.relative_to(folder).as_posix()


def _rank(file: str) -> float:
  """A number in [0, 1) that is even over names and fixed for each."""
  digest = hashlib.sha256(os.fsencode(file)).digest()
  return int.from_bytes(digest[:6], "big") / 2**48


def _look(
  folder: Path, file: str, caption: str | None, spec: ClipSpec
) -> tuple[Row, Video | None]:
  """Probes one video and judges whether it can be used."""
  if not caption:
    reason = "no caption" if caption is None else "empty caption"
    return Row(file=file, used=False, reason=reason), None
  try:
    info = probe(folder / file, num_threads=1)
  except VideoError as error:
    return Row(file=file, used=False, reason=error.reason), None
  frames = info.frames_at(spec.fps)
  too_short = (
    f"too short: {info.duration_s:.2f} s make {frames} frames at "
    f"{spec.fps:g} fps, a clip is {spec.num_frames} ({spec.seconds:.2f} s); "
    "use longer videos, fewer frames or a higher fps"
  )
  used = frames >= spec.num_frames
  row = Row(
    file=file,
    used=used,
    reason=None if used else too_short,
    seconds=round(info.duration_s, 3),
    fps=round(info.fps, 3),
    width=info.width,
    height=info.height,
    frames_at_fps=frames,
  )
  video = Video(file=file, caption=caption, info=info)
  return row, video if used else None


def _summarise(
  folder: Path, spec: ClipSpec, rows: Sequence[Row], report: Report
) -> None:
  dropped = [row for row in rows if not row.used]
  where = f"; see {report.path}" if report.path and dropped else ""
  if len(dropped) == len(rows):
    first = f"{dropped[0].file}: {dropped[0].reason}"
    raise UserError(
      f"{folder}: none of {len(rows)} videos can be used: "
      f"{count_reasons(rows)} (the first: {first}){where}"
    )
  lines = [
    f"data: {len(rows) - len(dropped)} of {len(rows)} videos in {folder} used "
    f"for clips of {spec.num_frames} frames at {spec.fps:g} fps"
  ]
  if dropped:
    lines.append(f"data: dropped {count_reasons(rows)}{where}")
  if not report.path:
    shown = dropped[:_REPORT_HINT_ROWS]
    lines += [f"data:   {row.file}: {row.reason}" for row in shown]
  print(*lines, sep="\n", file=sys.stderr)
