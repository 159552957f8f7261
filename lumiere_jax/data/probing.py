"""Looks at a file and judges what of it clips can be cut from."""

from collections.abc import Sequence

from lumiere_jax.data.buckets import choose_bucket
from lumiere_jax.data.filters import Filters, Stretch
from lumiere_jax.data.remembered import Remembered
from lumiere_jax.data.report import Row, shape_name
from lumiere_jax.data.source import ClipSpec
from lumiere_jax.data.video import Video
from lumiere_jax.io.decode import VideoInfo
from lumiere_jax.io.errors import VideoError
from lumiere_jax.io.folder import Folder
from lumiere_jax.io.picture import is_picture, picture_size

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
  remembered: Remembered,
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
