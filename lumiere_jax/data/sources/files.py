"""The `files` source: a folder of captioned videos and pictures.

Every file is decoded to the end once, when the folder is first opened. The
data report gives the reason for each file that cannot be used.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import copy
import hashlib
import os
import sys
import threading
from typing import Any

import numpy as np
import tqdm

from lumiere_jax.data.captions import is_media, read_captions
from lumiere_jax.data.dataset_report import Report, Row, summarise
from lumiere_jax.data.filters import DEFAULT_FILTERS, Filters
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.sources.base import ClipSpec, Group, UnreadableClip
from lumiere_jax.data.video_index import IndexEntry, index_file
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.storage.atomic import AnyPath
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import Clip


class FilesSource:
  """Clips of captioned files. An epoch takes one clip from each shot.

  Attributes:
    specs: the shapes of clips.
    videos: the shots and pictures that clips are taken from, by index.
    local_path: gives the file of a name on this machine; raises a VideoError
      if it is remote and can no longer be copied.
  """

  def __init__(
    self,
    found: Sequence[IndexEntry],
    specs: Sequence[ClipSpec],
    where: str,
    report_path: AnyPath | None,
    local_path: Callable[[str], Any] = str,
  ):
    """Reports indexed videos and takes those that are used.

    Records have names instead of paths. For the arguments, see `open`.
    """
    self.specs, self.local_path = tuple(specs), local_path
    self.videos = tuple(video for _, video in found if video is not None)
    rows = [row for row, _ in found]
    self._report = Report(report_path)
    self._report.write(rows)
    summary = summarise(rows, where, specs[0].fps, self._report.path)
    print(summary, file=sys.stderr)
    self._dropped: set[str] = set()
    self._lock = threading.Lock()

  @classmethod
  def open(
    cls,
    path: AnyPath,
    specs: Sequence[ClipSpec],
    *,
    filters: Filters = DEFAULT_FILTERS,
    report_path: AnyPath | None = None,
    num_threads: int | None = None,
    prompts: str = "",
    cache: str = "",
    most_files: int = 0,
    need_captions: bool = True,
  ) -> "FilesSource":
    """Reads the captions of a folder and probes its videos.

    Prints a summary to stderr, with a progress bar on a terminal.

    Args:
      path: folder of videos, pictures and captions, or its URL; see
        `read_captions` for the forms of captions.
      specs: the shapes of clips, of one frame rate. `choose_bucket` assigns one
        to each video; pictures need one of one frame.
      filters: criteria for videos and shots.
      report_path: of the data report to write; None: none.
      num_threads: that probe; None: one per core.
      prompts: see `read_captions`.
      cache: see `Folder` and `ProbeCache`.
      most_files: reads only so many files, evenly spaced by name; 0: all.
      need_captions: whether files without caption are dropped; otherwise their
        caption is '', and names of sub-folders are not used as captions.
    """
    folder = Folder(path, cache)
    captions = list_videos(folder, prompts, need_captions)
    if not need_captions:
      captions = {name: texts or ("",) for name, texts in captions.items()}
    if 0 < most_files < len(captions):
      names = list(captions)
      at = np.linspace(0, len(names) - 1, most_files).round().astype(int)
      captions = {names[k]: captions[names[k]] for k in at}
    probes = ProbeCache(str(folder), filters, cache)
    index = lambda name: index_file(
      folder, name, captions[name], specs, filters, probes
    )
    with futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
      bar = tqdm.tqdm(
        pool.map(index, captions), "probing videos", len(captions), disable=None
      )
      found = [entry for entries in bar for entry in entries]
    return cls(found, specs, str(folder), report_path, folder.local)

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
    return self.videos[index].captions

  def clip(self, index: int, rng: np.random.Generator | None = None) -> Clip:
    """Reads a clip of the shape of its group; see `Video.read`.

    Raises:
      UnreadableClip: the file is missing or damaged since it was probed. The
        first time, this is printed and reported.
    """
    video = self.videos[index]
    if video.file in self._dropped:
      raise UnreadableClip(f"{video.file}:", "was dropped before")
    try:
      return video.read(self.local_path(video.file), rng)
    except VideoError as error:
      with self._lock:
        is_new = video.file not in self._dropped
        self._dropped.add(video.file)
      if is_new:
        row = Row(file=video.file, used=False, reason=error.reason)
        self._report.add(row)
      raise UnreadableClip(error.field, error.problem) from error

  def split(self, fraction: float = 0.1) -> tuple["FilesSource", "FilesSource"]:
    """Splits the files into (train, held out) by a hash of their names.

    The split of a file does not depend on the other files. Of two or more
    files each part has at least one, unless `fraction` is 0; a single file is
    for training.

    Args:
      fraction: of the files to hold out, in [0, 1).
    """
    if not 0 <= fraction < 1:
      raise UserError(
        f"held_out={fraction}", "is out of range", "give 0 or more, below 1"
      )
    ordered = sorted({video.file for video in self.videos}, key=_rank)
    count = sum(_rank(file) < fraction for file in ordered)
    count = min(max(count, fraction > 0), len(ordered) - 1)
    held_out = set(ordered[:count])
    parts = copy.copy(self), copy.copy(self)
    for inside, part in enumerate(parts):
      part.videos = tuple(
        v for v in self.videos if (v.file in held_out) == inside
      )
    return parts


def list_videos(
  folder: Folder, prompts: str = "", need_captions: bool = True
) -> dict[str, tuple[str, ...] | None]:
  """All videos and pictures of a folder -> their captions; see `read_captions`.

  None stands for none at all, not even an empty one. Sorted by name.
  """
  captions = read_captions(folder, prompts, need_captions)
  names = sorted({*captions, *filter(is_media, folder.names)})
  return {name: captions.get(name) for name in names}


def _rank(file: str) -> float:
  """A hash of a name, uniform in [0, 1)."""
  digest = hashlib.sha256(os.fsencode(file)).digest()
  return int.from_bytes(digest[:6], "big") / 2**48
