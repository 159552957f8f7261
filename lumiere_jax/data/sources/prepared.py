"""The `prepared` source: clips that `prepare` has stored in shards.

Nothing is decoded to open it, since the manifest describes all clips. A clip is
read as from a file, from the key frame before its start.
"""

import collections
from collections.abc import Sequence
import dataclasses
import sys

import numpy as np

from lumiere_jax.data.filters import (
  DEFAULT_FILTERS,
  FRAME_FILTERS,
  Filters,
  Shot,
)
from lumiere_jax.data.manifest import CLIPS, NAME, Manifest, read_manifest
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.video_index import IndexEntry, Video, index_shot
from lumiere_jax.errors import UserError, VideoError, format_message, option
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.storage.array_record import Records
from lumiere_jax.storage.atomic import AnyPath
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedVideo(Video):
  """A video in the record of this key."""

  key: str
  records: Records

  def read(self, path, rng: np.random.Generator | None = None) -> Clip:
    """As for files; `path` is the name used in errors."""
    try:
      data = self.records[self.key]
    except UserError as error:
      raise VideoError(path, f"damaged: {error}") from error
    return super().read(InMemoryFile(str(path), data), rng)


def is_prepared(path: AnyPath) -> bool:
  """Whether a folder, or the URL of one, has been prepared."""
  return NAME in Folder(path).names


def open_prepared(
  path: AnyPath,
  specs: Sequence[ClipSpec],
  *,
  filters: Filters = DEFAULT_FILTERS,
  report_path: AnyPath | None = None,
  cache: str = "",
) -> FilesSource:
  """Opens a folder that `prepare` has finished; prints a summary to stderr.

  Shards of a remote folder are copied first.

  The frame rate of a video is the one it was prepared at. A notice is printed
  if filters have `scene_cuts` or `min_motion` and the folder was prepared
  without it. For the arguments, see `FilesSource.open`.
  """
  folder = Folder(path, cache)
  manifest = read_manifest(folder)
  records = Records(folder, CLIPS)
  missing = [clip.file for clip in manifest.clips if clip.key not in records]
  if missing:
    raise UserError(
      f"{folder}:",
      f"{len(missing)} of {len(manifest.clips)} clips are missing from its "
      f"shards (the first: {missing[0]})",
      "copy the folder again, or run lumiere_jax.prepare again",
    )
  _report_unfiltered(folder, manifest, filters)
  prepared_fps = manifest.options["fps"]
  parts = collections.Counter(clip.file for clip in manifest.clips)
  found: list[IndexEntry] = []
  for clip in manifest.clips:
    info = VideoInfo(
      duration_s=clip.seconds,
      num_frames=clip.frames,
      height=clip.height,
      width=clip.width,
    )
    row, video = index_shot(
      clip.file,
      clip.captions,
      Shot(start_s=clip.start_s, info=info),
      specs,
      filters,
      partial=parts[clip.file] > 1,
      fps=prepared_fps,
    )
    if video is not None:
      values = vars(video) | {"start_s": 0.0}  # In its record.
      video = PreparedVideo(**values, key=clip.key, records=records)
    found.append((row, video))
  source = FilesSource(found, specs, str(folder), report_path)
  if specs[0].fps > prepared_fps:
    print(
      f"data: {folder} was prepared at {prepared_fps:g} fps; at "
      f"{specs[0].fps:g} fps frames repeat",
      file=sys.stderr,
    )
  return source


def _report_unfiltered(
  folder: Folder, manifest: Manifest, filters: Filters
) -> None:
  for name in FRAME_FILTERS:
    value = getattr(filters, name)
    if value and not manifest.options.get(name):
      message = (
        f"data: {folder} was prepared without {option(name)}, so "
        f"config.data.{name}={value:g} has no effect; run lumiere_jax.prepare "
        f"again with {option(name, f'{value:g}')}"
      )
      print(format_message(message), file=sys.stderr)
