"""Checks sizes and lengths against the limits of the page."""

import math

from lumiere_jax.contrib.web.labels import LABELS
from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.contrib.web.uploads import check_pixels, check_sides
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.tasks import (
  Extend,
  Outpaint,
  Panorama,
  SuperResolve,
  Task,
)
from lumiere_jax.media.container import open_video
from lumiere_jax.media.masks import parse_expand
from lumiere_jax.media.resize import upright_size

Size = tuple[int, int]
"""(width, height)."""


_PLANNED = ("text_to_video", "image_to_video", "cinemagraph", "stylize")
"""Tasks whose length and windows follow from the settings alone."""


_RESULT = "The result"


def check_size(
  task: Task, how: SampleOptions, pipeline: Pipeline, limits: Limits
) -> None:
  """Checks sizes and lengths of what a task reads and makes.

  Args:
    task: with its inputs.
    how: with its settings.
    pipeline: that will run it.
    limits: of the page.

  Raises:
    UserError: it is too large or too long, or added edges would be cropped.
  """
  settings = how["settings"]
  frames, (height, width) = pipeline.frames(how), pipeline.resolution(settings)
  if task.name in _PLANNED:
    pipeline.plan(settings)
  if task.picture:
    frames = 1
  if isinstance(task, Panorama):
    width = task.width
  if video := getattr(task, "video", ""):
    shown, size = _measure(video, pipeline.fps, limits)
    if isinstance(task, SuperResolve):
      frames = shown
      width, height = (side * pipeline.upscale for side in size)
    elif isinstance(task, Extend):
      frames = shown + task.times * frames
    else:
      shown = min(shown, frames + 1)
    check_pixels("Video", shown, size, limits)
    if isinstance(task, Outpaint):
      check_edges(parse_expand(task.expand), size, (width, height))
  check_sides(_RESULT, (width, height), limits)
  check_pixels(_RESULT, frames, (width, height), limits)
  if frames > limits.max_seconds * pipeline.fps:
    raise UserError(
      _RESULT,
      f"is too long: {frames / pipeline.fps:.1f} s",
      f"make at most {limits.max_seconds:g} s",
    )


def check_edges(
  edges: tuple[int, int, int, int], size: Size, made: Size
) -> None:
  """Raises a UserError if an edge added to a video would be cropped again.

  Args:
    edges: pixels (left, top, right, bottom) to add.
    size: of the video.
    made: of the result. The enlarged video is resized to cover it and cropped
      at its centre.
  """
  left, top, right, bottom = edges
  whole = size[0] + left + right, size[1] + top + bottom
  share = min(side / wanted for side, wanted in zip(whole, made, strict=True))
  cuts = [
    (side - share * wanted) / 2
    for side, wanted in zip(whole, made, strict=True)
  ]
  for name, edge, cut in zip(
    ("left", "top", "right", "bottom"), edges, cuts * 2, strict=True
  ):
    if 0 < edge <= cut:
      along = name in ("left", "right")
      # What gives the enlarged video the aspect ratio of the result.
      wanted = whole[not along] * made[along] / made[not along]
      more = math.ceil((wanted - whole[along]) / 2)
      where = "above and below" if along else "left and right"
      raise UserError(
        LABELS[name],
        f"would be cropped again: with all edges the video is "
        f"{whole[0]}x{whole[1]}, the result {made[0]}x{made[1]}",
        f"add {more} pixels more {where}",
      )


def _measure(path: str, fps: float, limits: Limits) -> tuple[int, Size]:
  """Most frames that a video has at a frame rate, and its size."""
  with open_video(path) as track:
    stated_s = (track.container.duration or 0) / 1e6
    _, first = next(track.frames(), (0.0, None))
    if first is None:
      raise VideoError(path, "no frames: nothing in it can be decoded")
    height, width = upright_size(first, track.pixel_aspect)
  frames = math.ceil((stated_s or limits.max_seconds) * fps) or 1
  return frames, (width, height)
