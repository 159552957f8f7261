"""The `files` source: a folder of captioned videos and pictures of any kind.

Every file is decoded to its end once, when the folder is first opened. What
cannot be used is dropped with its reason; see `report`.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
from pathlib import Path
import sys
import threading

import numpy as np
import tqdm

from lumiere_jax.data.captions import is_media, read_captions
from lumiere_jax.data.dataset_report import Report, Row, summarise
from lumiere_jax.data.filters import Filters
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.sources.base import ClipSpec, Group, UnreadableClip
from lumiere_jax.data.video_index import Video, examine
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import Clip


class FilesSource:
  """Clips of captioned files; of each stretch of video one in an epoch.

  Attributes:
    folder: that the files lie in.
    specs: the shapes of clips.
    videos: what clips are cut from, by index.
  """

  def __init__(
    self,
    folder: Folder,
    specs: Sequence[ClipSpec],
    videos: Sequence[Video],
    report: Report,
  ):
    """Takes videos that have been probed; see `open`."""
    self.folder, self.specs = folder, tuple(specs)
    self.videos = tuple(videos)
    self._report = report
    self._broken: set[str] = set()
    self._lock = threading.Lock()

  @classmethod
  def open(
    cls,
    folder: str | os.PathLike,
    specs: Sequence[ClipSpec],
    *,
    report_path: str | os.PathLike | None = None,
    num_threads: int | None = None,
    scene_cuts: float = 0.0,
    min_motion: float = 0.0,
    max_enlarge: float = 4.0,
    min_fps_ratio: float = Filters.min_fps_ratio,
    whole_videos: bool = False,
    prompts: str = "",
    cache: str = "",
  ) -> "FilesSource":
    """Reads the captions of a folder and probes its videos.

    Prints a summary to stderr, with a progress bar on a terminal.

    Args:
      folder: videos, pictures and captions, or its URL; see `captions` for how
        to write those.
      specs: the shapes of clips, of one frame rate. Each video serves the one
        that suits it, see `choose_bucket`; pictures serve those of one frame.
      report_path: where to write data_report.jsonl; None: nowhere.
      num_threads: that probe; None: as many as there are cores.
      scene_cuts, min_motion, max_enlarge, min_fps_ratio, whole_videos: see
        `Filters`.
      prompts: see `read_captions`.
      cache: see `Folder` and `Remembered`.

    Raises:
      UserError: no captions can be read, or no video can be used.
    """
    folder = Folder(folder, cache)
    captions = list_videos(folder, prompts)
    filters = Filters(
      scene_cuts=scene_cuts,
      min_motion=min_motion,
      max_enlarge=max_enlarge,
      min_fps_ratio=min_fps_ratio,
      whole_videos=whole_videos,
    )
    remembered = ProbeCache(str(folder), filters, cache)
    look = lambda name: examine(
      folder, name, captions[name], specs, filters, remembered
    )
    with futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
      bar = tqdm.tqdm(
        pool.map(look, captions), "probing videos", len(captions), disable=None
      )
      found = [finding for findings in bar for finding in findings]
    rows = [row for row, _ in found]
    report = Report(report_path)
    report.write(rows)
    summary = summarise(rows, str(folder), specs[0].fps, report.path)
    print(summary, file=sys.stderr)
    videos = [video for _, video in found if video is not None]
    return cls(folder, specs, videos, report)

  def __len__(self) -> int:
    return len(self.videos)

  @property
  def groups(self) -> tuple[Group, ...]:
    """The videos by the shape of their clips."""
    members = [
      [i for i, video in enumerate(self.videos) if video.spec == spec]
      for spec in self.specs
    ]
    return tuple(Group(indices=some) for some in members if some)

  def captions(self, index: int) -> tuple[str, ...]:
    """What video `index` shows."""
    return self.videos[index].captions

  def local_path(self, index: int) -> Path:
    """The file of video `index`, on this machine.

    Raises:
      VideoError: it is remote and cannot be copied any more.
    """
    return self.folder.local(self.videos[index].file)

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    """Cuts a clip out of video `index`.

    Args:
      index: of the video.
      rng: draws where the clip begins; None: the middle of the video.

    Returns:
      (t, h, w, 3) uint8, RGB, of the shape of its group.

    Raises:
      UnreadableClip: the file vanished or broke since it was probed. This is
        printed and reported the first time.
    """
    video = self.videos[index]
    if video.file in self._broken:
      raise UnreadableClip(f"{video.file}: was dropped before")
    try:
      return video.cut(self.local_path(index), rng)
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
    """Parts the files into (train, held out), by a hash of their names.

    Adding files moves none of the others. Of two files or more, each part has
    at least one, unless `fraction` is 0; a single one is for training.

    Args:
      fraction: of the files to hold out, in [0, 1).

    Raises:
      UserError: fraction is out of range.
    """
    if not 0 <= fraction < 1:
      raise UserError(
        "", f"held-out fraction is {fraction}", "give 0 or more, below 1"
      )
    ordered = sorted({video.file for video in self.videos}, key=_rank)
    count = sum(_rank(file) < fraction for file in ordered)
    count = min(max(count, fraction > 0), len(ordered) - 1)
    held_out = set(ordered[:count])
    part = lambda inside: FilesSource(
      self.folder,
      self.specs,
      [v for v in self.videos if (v.file in held_out) == inside],
      self._report,
    )
    return part(False), part(True)


def list_videos(
  folder: Folder, prompts: str = ""
) -> dict[str, tuple[str, ...] | None]:
  """All videos and pictures of a folder, by name, and their captions.

  Args:
    folder: see `read_captions`.
    prompts: see `read_captions`.

  Returns:
    name in `folder`, or URL -> its captions, None where it has none, not even
    an empty one. In the order of the names.

  Raises:
    UserError: no captions can be read.
  """
  captions = read_captions(folder, prompts)
  names = sorted({*captions, *filter(is_media, folder.names)})
  return {name: captions.get(name) for name in names}


def _rank(file: str) -> float:
  """A number in [0, 1) that is even over names and fixed for each."""
  digest = hashlib.sha256(os.fsencode(file)).digest()
  return int.from_bytes(digest[:6], "big") / 2**48


class StoredSource(FilesSource):
  """Clips of videos that know themselves where their pixels are.

  Their `cut` is given their name for a path.
  """

  def __init__(
    self, specs: Sequence[ClipSpec], videos: Sequence[Video], report: Report
  ):
    """Takes videos of some kind of their own."""
    super().__init__(Folder(""), specs, videos, report)

  def local_path(self, index: int) -> str:
    """The name of video `index`, which is in no file."""
    return self.videos[index].file

  def split(
    self, fraction: float = 0.1
  ) -> tuple["StoredSource", "StoredSource"]:
    """As for files: by a hash of their names, all parts of one together."""
    train, held_out = (
      StoredSource(self.specs, part.videos, self._report)
      for part in super().split(fraction)
    )
    return train, held_out
