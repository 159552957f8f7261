"""The `prepared` source: clips that `prepare` has put into shards.

Nothing is decoded to open it: prepared.json says what there is. Clips are cut
as from files, from the key frame before their start.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import os
import sys

import numpy as np

from lumiere_jax.data.dataset_report import publish
from lumiere_jax.data.filters import Filters, Stretch
from lumiere_jax.data.manifest import (
  CLIPS,
  NAME,
  Manifest,
  Stored,
  read_manifest,
)
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import StoredSource
from lumiere_jax.data.video_index import Finding, Video, judge
from lumiere_jax.errors import UserError, VideoError, option
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.storage.array_record import Records
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedVideo(Video):
  """A video in a record.

  Attributes:
    key: of the record.
    records: that it is in.
  """

  key: str
  records: Records

  def cut(self, path, rng: np.random.Generator | None = None) -> Clip:
    """As for files; `path` is what errors call it."""
    try:
      data = self.records[self.key]
    except UserError as error:
      raise VideoError(path, f"damaged: {error}") from error
    return super().cut(InMemoryFile(str(path), data), rng)


def is_prepared(path: str | os.PathLike) -> bool:
  """Whether a folder, or the URL of one, has been prepared."""
  return NAME in Folder(path).names


def open_prepared(
  path: str | os.PathLike,
  specs: Sequence[ClipSpec],
  *,
  report_path: str | os.PathLike | None = None,
  max_enlarge: float = 4.0,
  min_fps_ratio: float = Filters.min_fps_ratio,
  wanted: Mapping[str, float] | None = None,
  cache: str = "",
) -> StoredSource:
  """Opens a folder that `prepare` has finished.

  Prints a summary to stderr.

  Args:
    path: the folder, or its URL: then its shards are copied first.
    specs: the shapes of clips, of one frame rate.
    report_path: where to write data_report.jsonl; None: nowhere.
    max_enlarge, min_fps_ratio: see `Filters`; the frame rate is the one they
      were prepared at.
    wanted: 'scene_cuts' and 'min_motion' as wanted; it is reported where the
      folder was prepared without them.
    cache: see `Folder`.

  Raises:
    UserError: it is not there, not finished, damaged or of a newer version,
      or none of its clips can be used.
  """
  folder = Folder(path, cache)
  manifest = read_manifest(folder)
  records = Records(folder, CLIPS)
  _require_all(folder, manifest, records)
  _tell_unfiltered(folder, manifest, wanted or {})
  filters = Filters(max_enlarge=max_enlarge, min_fps_ratio=min_fps_ratio)
  prepared_fps = manifest.options["fps"]
  parts = collections.Counter(clip.file for clip in manifest.clips)
  found = [
    _look(
      clip,
      records,
      specs,
      filters,
      parted=parts[clip.file] > 1,
      fps=prepared_fps,
    )
    for clip in manifest.clips
  ]
  rows = [row for row, _ in found]
  report = publish(rows, str(folder), specs[0].fps, report_path)
  if specs[0].fps > prepared_fps:
    print(
      f"data: {folder} was prepared at {prepared_fps:g} fps: at "
      f"{specs[0].fps:g} fps frames come more than once",
      file=sys.stderr,
    )
  videos = [video for _, video in found if video is not None]
  return StoredSource(specs, videos, report)


def _require_all(folder: Folder, manifest: Manifest, records: Records) -> None:
  lost = [clip.file for clip in manifest.clips if clip.key not in records]
  if lost:
    raise UserError(
      f"{folder}:",
      f"{len(lost)} of {len(manifest.clips)} clips are in none of its "
      f"shards (the first: {lost[0]})",
      "copy the folder again, or run again the lumiere_jax.prepare "
      "that made it",
    )


def _tell_unfiltered(
  folder: Folder, manifest: Manifest, wanted: Mapping[str, float]
) -> None:
  for name, value in wanted.items():
    if value and not manifest.options.get(name):
      print(
        f"data: {folder} was prepared without {option(name)}, so that "
        f"config.data.{name}={value:g} is not applied: run lumiere_jax.prepare "
        f"again with {option(name)}={value:g}",
        file=sys.stderr,
      )


def _look(
  clip: Stored,
  records: Records,
  specs: Sequence[ClipSpec],
  filters: Filters,
  *,
  parted: bool,
  fps: float,
) -> Finding:
  info = VideoInfo(
    duration_s=clip.seconds,
    num_frames=clip.frames,
    height=clip.height,
    width=clip.width,
  )
  stretch = Stretch(start_s=clip.start_s, info=info, motion=None)
  row, video = judge(
    *(clip.file, clip.captions, stretch, specs, filters),
    parted=parted,
    fps=fps,
  )
  if video is None:
    return row, None
  return row, PreparedVideo(
    file=video.file,
    captions=video.captions,
    info=info,
    spec=video.spec,
    key=clip.key,
    records=records,
  )
