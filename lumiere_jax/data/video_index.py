"""The videos that clips are cut from: filters, and the bucket of each shot."""

from collections.abc import Sequence
import dataclasses
import math
import re

import numpy as np

from lumiere_jax.data.dataset_report import Row
from lumiere_jax.data.filters import Filters, Shot
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import is_picture, picture_size
from lumiere_jax.media.video_reader import VideoInfo, read_clip
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import Clip

_SHAPE = re.compile(r"\d+x\d+x\d+")


def parse_buckets(text: str) -> list[tuple[int, int, int]]:
  """'80x96x160 16x128x128' -> [(80, 96, 160), (16, 128, 128)]."""
  shapes = []
  for entry in text.split():
    if not _SHAPE.fullmatch(entry):
      raise UserError(
        "config.data.buckets:",
        f"{entry!r} is not FRAMESxHEIGHTxWIDTH, such as 80x96x160",
        "separate several by spaces",
      )
    frames, height, width = map(int, entry.split("x"))
    shapes.append((frames, height, width))
  return shapes


def choose_bucket(
  specs: Sequence[ClipSpec], frames: int, height: int, width: int
) -> int | None:
  """Index of the best shape for a video; None if it is too short for all.

  Of the shapes with at most as many frames as the video, it takes the longest;
  of those, the one nearest in aspect ratio (by its logarithm, so that wide and
  tall count alike); of those, the largest. The video has so many `frames` at
  the frame rate of the clips.
  """

  def preference(i: int) -> tuple[int, float, int]:
    h, w = specs[i].resolution
    mismatch = abs(math.log(w / h) - math.log(width / height))
    return specs[i].num_frames, -mismatch, h * w

  fits = [i for i, spec in enumerate(specs) if spec.num_frames <= frames]
  return max(fits, key=preference, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """A shot of a video, or a picture, and the shape of the clips taken from it.

  It is named relative to its folder, or by URL, and has at least one caption.
  The `info` is of the shot alone, from `start_s` on; pictures last 0 seconds.
  """

  file: str
  captions: tuple[str, ...]
  info: VideoInfo
  spec: ClipSpec
  start_s: float = 0.0

  @property
  def end_s(self) -> float:
    return self.start_s + self.info.duration_s

  @property
  def is_picture(self) -> bool:
    return not self.info.duration_s

  def read(self, path, rng: np.random.Generator | None = None) -> Clip:
    """Reads a clip (t, h, w, 3) from the file at `path` on this machine.

    The `rng` draws the start of the clip; None: the middle of the shot.

    Raises:
      VideoError: the file is missing or damaged since it was probed.
    """
    if self.is_picture:
      return read_image(path, self.spec.resolution)[None]
    return read_clip(
      path,
      start_s=self.start_s + self.draw_offset(rng),
      num_frames=self.spec.num_frames,
      fps=self.spec.fps,
      resolution=self.spec.resolution,
      resample=self.spec.resample,
      end_s=self.end_s,
    )

  def draw_offset(self, rng: np.random.Generator | None) -> float:
    """Start of a clip in seconds into the shot."""
    spare_s = max(0.0, self.info.duration_s - self.spec.seconds)
    return spare_s * (0.5 if rng is None else rng.random())


# Tolerance for the ratio of two frame rates: 29.97 is a multiple of 15.
_DIVIDES = 0.01

IndexEntry = tuple[Row, Video | None]
"""The report on a shot, and the video to use; None: it is not used."""


def index_file(
  folder: Folder,
  file: str,
  captions: Sequence[str] | None,
  specs: Sequence[ClipSpec],
  filters: Filters,
  cache: ProbeCache,
) -> list[IndexEntry]:
  """Probes a file, named as in `Folder`, and applies the filters to its shots.

  Captions that are None stand for none at all, not even an empty one.
  """
  if not captions:
    reason = "no caption" if captions is None else "empty caption"
    return [(Row(file=file, used=False, reason=reason), None)]
  try:
    path = folder.local(file)
    if is_picture(path):
      h, w = picture_size(path)
      info = VideoInfo(duration_s=0.0, num_frames=1, height=h, width=w)
      shots = [Shot(start_s=0.0, info=info)]
    else:
      shots = cache.probe_shots(file, path)
  except VideoError as error:
    return [(Row(file=file, used=False, reason=error.reason), None)]
  partial = len(shots) > 1
  return [
    index_shot(file, captions, shot, specs, filters, partial=partial)
    for shot in shots
  ]


def index_shot(
  file: str,
  captions: Sequence[str],
  shot: Shot,
  specs: Sequence[ClipSpec],
  filters: Filters,
  *,
  partial: bool = False,
  fps: float | None = None,
) -> IndexEntry:
  """Applies the filters to a shot and chooses the shape of its clips.

  The shot is `partial` if it is only a part of the file; its frame rate is
  `fps` if known, else the measured mean. All specs have one frame rate.
  """
  info, start_s = shot.info, shot.start_s
  ratio = (fps or info.fps) / specs[0].fps if info.duration_s else None
  chosen = _choose(shot, specs, filters, ratio)
  spec, reason = (None, chosen) if isinstance(chosen, str) else (chosen, None)
  shape = (spec.num_frames, *spec.resolution) if spec else ()
  row = Row(
    file=file,
    used=spec is not None,
    reason=reason,
    start_s=round(start_s, 3) if partial else None,
    end_s=round(start_s + info.duration_s, 3) if partial else None,
    clip="x".join(map(str, shape)) or None,
    seconds=round(info.duration_s, 3),
    fps=round(info.fps, 3) if info.duration_s else None,
    width=info.width,
    height=info.height,
    frames_at_fps=info.frames_at(specs[0].fps),
    left_out_s=round(info.left_out_s, 3),
    uneven=spec is not None and filters.is_temporal(spec) and _is_uneven(ratio),
  )
  if spec is None:
    return row, None
  return row, Video(
    file=file, captions=tuple(captions), info=info, spec=spec, start_s=start_s
  )


def _is_uneven(ratio: float | None) -> bool:
  """Whether lowering the frame rate by `ratio` takes frames at uneven steps."""
  return ratio is not None and abs(ratio - max(1, round(ratio))) > _DIVIDES


def _choose(
  shot: Shot, specs: Sequence[ClipSpec], filters: Filters, ratio: float | None
) -> ClipSpec | str:
  """The shape of its clips, or "kind: details" of why there is none."""
  info = shot.info
  frames = info.frames_at(specs[0].fps)
  if not info.duration_s and all(spec.num_frames > 1 for spec in specs):
    return "a picture: clips have several frames; give videos"
  if ratio is not None and ratio < filters.min_fps_ratio:
    fps = specs[0].fps
    specs = [spec for spec in specs if not filters.is_temporal(spec)]
    if not specs:
      return (
        f"slow: {ratio * fps:.4g} frames per second, but clips have {fps:g}, "
        "so frames would repeat; use a lower fps, or min_fps_ratio=0 to use it "
        "anyway"
      )
  fits = [s for s in specs if _enlargement(info, s) <= filters.max_enlarge]
  if not fits:
    least = min(specs, key=lambda spec: _enlargement(info, spec))
    return (
      f"too small: {info.width}x{info.height} must be enlarged "
      f"{_enlargement(info, least):.3g} times to cover {least.resolution[1]}x"
      f"{least.resolution[0]}, the maximum is {filters.max_enlarge:g}; use "
      "larger videos or smaller clips"
    )
  bucket = choose_bucket(fits, frames, info.height, info.width)
  if bucket is None:
    least = min(fits, key=lambda spec: spec.num_frames)
    return (
      f"too short: {info.duration_s:.2f} s give {frames} frames at "
      f"{least.fps:g} fps, a clip has {least.num_frames} ({least.seconds:.2f} "
      "s); use longer videos, fewer frames or a higher fps"
    )
  moves = shot.motion is None or shot.motion >= filters.min_motion
  if filters.is_temporal(fits[bucket]) and not moves:
    return (
      f"static: changes by {shot.motion:.2f} grey levels, the minimum is "
      f"{filters.min_motion:g}"
    )
  return fits[bucket]


def _enlargement(info: VideoInfo, spec: ClipSpec) -> float:
  """Factor by which a video must be enlarged to cover a clip."""
  height, width = spec.resolution
  return max(height / info.height, width / info.width)
