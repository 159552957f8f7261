"""Which parts of a video clips are cut from, and into which bucket they go."""

from collections.abc import Sequence
import dataclasses
import math
import re

import numpy as np

from lumiere_jax.data.dataset_report import Row, shape_name
from lumiere_jax.data.filters import Filters, Stretch
from lumiere_jax.data.probe_cache import ProbeCache
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.media.images import read_image
from lumiere_jax.media.input_file import is_picture, picture_size
from lumiere_jax.media.video_reader import VideoInfo, read_clip
from lumiere_jax.storage.remote import Folder
from lumiere_jax.typing import Clip

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


def parse_buckets(text: str) -> list[tuple[int, int, int]]:
  """'80x96x160 16x128x128' -> [(80, 96, 160), (16, 128, 128)].

  Raises:
    UserError: an entry is not FRAMESxHEIGHTxWIDTH.
  """
  shapes = []
  for entry in text.split():
    match = _SHAPE.fullmatch(entry)
    if not match:
      raise UserError(
        "config.data.buckets:",
        f"{entry!r} is not FRAMESxHEIGHTxWIDTH, as 80x96x160",
        "separate several by spaces",
      )
    shapes.append(tuple(map(int, match.groups())))
  return shapes


def choose_bucket(
  specs: Sequence[ClipSpec], frames: int, height: int, width: int
) -> int | None:
  """The shape that suits a video best.

  Of the shapes that the video is long enough for, the longest; of those, the
  one nearest to it in aspect (by the logarithm, so that wide and tall count
  alike); of those, the largest.

  Args:
    specs: the shapes.
    frames: of the video at the frame rate of the clips.
    height: of the video in pixels.
    width: of the video in pixels.

  Returns:
    Index into `specs`; None: the video is too short for all of them.
  """
  fits = [i for i, spec in enumerate(specs) if spec.num_frames <= frames]
  if not fits:
    return None

  def preference(i: int) -> tuple[int, float, int]:
    h, w = specs[i].resolution
    return (
      specs[i].num_frames,
      -abs(math.log(w / h) - math.log(width / height)),
      h * w,
    )

  return max(fits, key=preference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
  """What clips of one shape are cut from.

  Attributes:
    file: its name relative to its folder, or its URL.
    captions: what it shows, said in one way or several.
    info: of the stretch alone; a picture lasts 0 seconds.
    spec: the shape of its clips.
    start_s: where the stretch begins in the file.
  """

  file: str
  captions: tuple[str, ...]
  info: VideoInfo
  spec: ClipSpec
  start_s: float = 0.0

  @property
  def end_s(self) -> float:
    """Where the stretch ends in the file."""
    return self.start_s + self.info.duration_s

  @property
  def is_picture(self) -> bool:
    """Whether its file is a still picture."""
    return not self.info.duration_s

  def cut(self, path, rng: np.random.Generator | None = None) -> Clip:
    """Reads a clip.

    Args:
      path: the file, on this machine.
      rng: draws where the clip begins; None: the middle of the stretch.

    Returns:
      (t, h, w, 3) uint8, RGB.

    Raises:
      VideoError: the file vanished or broke since it was probed.
    """
    if self.is_picture:
      return read_image(path, self.spec.resolution)[None]
    spare_s = max(0.0, self.info.duration_s - self.spec.seconds)
    at = 0.5 if rng is None else rng.random()
    return read_clip(
      path,
      start_s=self.start_s + at * spare_s,
      num_frames=self.spec.num_frames,
      fps=self.spec.fps,
      resolution=self.spec.resolution,
      resample=self.spec.resample,
      end_s=self.end_s,
    )


# Of the ratio of two frame rates, which divide in earnest at 29.97 to 15.
_DIVIDES = 0.01


Finding = tuple[Row, Video | None]
"""What is reported of a stretch of video; None: it is not used."""


def examine(
  folder: Folder,
  file: str,
  captions: Sequence[str] | None,
  specs: Sequence[ClipSpec],
  filters: Filters,
  remembered: ProbeCache,
) -> list[Finding]:
  """Decodes a file to its end, unless that was done, and judges it.

  Args:
    folder: that it lies in.
    file: name in the folder, or URL.
    captions: of the file; None: it has none, not even an empty one.
    specs: the shapes of clips, all of one frame rate.
    filters: what else is asked of it.
    remembered: what was found in it before.

  Returns:
    One finding for each stretch between cuts; one, if it is not parted.
  """
  if not captions:
    reason = "no caption" if captions is None else "empty caption"
    return [(Row(file=file, used=False, reason=reason), None)]
  try:
    path = folder.local(file)
    found = (
      [_picture(path)] if is_picture(path) else remembered.stretches(file, path)
    )
  except VideoError as error:
    return [(Row(file=file, used=False, reason=error.reason), None)]
  parted = len(found) > 1
  return [
    judge(file, captions, stretch, specs, filters, parted=parted)
    for stretch in found
  ]


def _picture(path) -> Stretch:
  height, width = picture_size(path)
  info = VideoInfo(duration_s=0.0, num_frames=1, height=height, width=width)
  return Stretch(start_s=0.0, info=info, motion=None)


def judge(
  file: str,
  captions: Sequence[str],
  stretch: Stretch,
  specs: Sequence[ClipSpec],
  filters: Filters,
  *,
  parted: bool = False,
  fps: float | None = None,
) -> Finding:
  """Finds the shape of clips that suits a stretch of video, if any does.

  Args:
    file: that the stretch is of.
    captions: of the file.
    stretch: what was found.
    specs: the shapes of clips, all of one frame rate.
    filters: what else is asked of it.
    parted: the stretch is not all of the file.
    fps: its frame rate, where that is known; None: its mean, as measured.
  """
  info, start_s = stretch.info, stretch.start_s
  ratio = None
  if info.duration_s:  # else a picture
    ratio = (fps or info.fps) / specs[0].fps
  chosen = _choose(stretch, specs, filters, ratio)
  spec, reason = (None, chosen) if isinstance(chosen, str) else (chosen, None)
  row = Row(
    file=file,
    used=spec is not None,
    reason=reason,
    start_s=round(start_s, 3) if parted else None,
    end_s=round(start_s + info.duration_s, 3) if parted else None,
    clip=spec and shape_name(spec),
    seconds=round(info.duration_s, 3),
    fps=round(info.fps, 3) if info.duration_s else None,
    width=info.width,
    height=info.height,
    frames_at_fps=info.frames_at(specs[0].fps),
    uneven=spec is not None and filters.timed(spec) and _is_uneven(ratio),
  )
  if spec is None:
    return row, None
  return row, Video(
    file=file, captions=tuple(captions), info=info, spec=spec, start_s=start_s
  )


def _is_uneven(ratio: float | None) -> bool:
  """Whether frames at a rate `ratio` times lower are taken at unequal steps."""
  return ratio is not None and abs(ratio - max(1, round(ratio))) > _DIVIDES


def _choose(
  stretch: Stretch,
  specs: Sequence[ClipSpec],
  filters: Filters,
  ratio: float | None,
) -> ClipSpec | str:
  """The shape of its clips, or "kind: details" of why there is none."""
  info = stretch.info
  frames = info.frames_at(specs[0].fps)
  if not info.duration_s and all(spec.num_frames > 1 for spec in specs):
    return "a picture: clips are of several frames; give videos"
  if ratio is not None and ratio < filters.min_fps_ratio:
    fps = specs[0].fps
    specs = [spec for spec in specs if not filters.timed(spec)]
    if not specs:
      return (
        f"slow: {ratio * fps:.4g} frames a second, clips have {fps:g}, so that "
        "frames would come more than once; use a lower fps, or min_fps_ratio=0 "
        "to take it all the same"
      )
  fits = [s for s in specs if _enlargement(info, s) <= filters.max_enlarge]
  if not fits:
    least = min(specs, key=lambda spec: _enlargement(info, spec))
    return (
      f"too small: {info.width}x{info.height} had to be enlarged "
      f"{_enlargement(info, least):.3g} times to cover {least.resolution[1]}x"
      f"{least.resolution[0]}, the most is {filters.max_enlarge:g}; use larger "
      "videos or smaller clips"
    )
  bucket = choose_bucket(fits, frames, info.height, info.width)
  if bucket is None:
    least = min(fits, key=lambda spec: spec.num_frames)
    return (
      f"too short: {info.duration_s:.2f} s make {frames} frames at "
      f"{least.fps:g} fps, a clip is {least.num_frames} ({least.seconds:.2f} "
      "s); use longer videos, fewer frames or a higher fps"
    )
  moves = stretch.motion is None or stretch.motion >= filters.min_motion
  if filters.timed(fits[bucket]) and not moves:
    return (
      f"static: changes by {stretch.motion:.2f} grey levels, the least is "
      f"{filters.min_motion:g}"
    )
  return fits[bucket]


def _enlargement(info: VideoInfo, spec: ClipSpec) -> float:
  """How many times larger a video must be to cover a clip."""
  height, width = spec.resolution
  return max(height / info.height, width / info.width)
