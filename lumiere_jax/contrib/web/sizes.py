"""Whether what is read and made fits: into the memory, and into the frame."""

import math

from lumiere_jax.contrib.web.labels import LABELS
from lumiere_jax.contrib.web.options import Limits
from lumiere_jax.contrib.web.uploads import check_pixels, check_sides
from lumiere_jax.errors import UserError, VideoError
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.tasks import Inputs
from lumiere_jax.media.container import open_video
from lumiere_jax.media.masks import parse_expand
from lumiere_jax.media.resize import upright_size

Size = tuple[int, int]
"""(width, height)."""


_PLANNED = ("text_to_video", "image_to_video", "cinemagraph", "stylize")
"""Tasks whose lengths and windows are what their settings say."""


_MADE = "What is to be made"


def check_size(
  task: str,
  inputs: Inputs,
  how: SampleOptions,
  pipeline: Pipeline,
  limits: Limits,
) -> None:
  """Of what a task reads and makes.

  Args:
    task: one of `TASKS`.
    inputs: its files and numbers.
    how: its settings.
    pipeline: that it is for.
    limits: what may be.

  Raises:
    UserError: it is too large or too long, or edges would be cut off again.
  """
  settings = how["settings"]
  frames, (height, width) = pipeline.frames(how), pipeline.resolution(settings)
  if task in _PLANNED:
    pipeline.plan(settings)
  if task == "text_to_image":
    frames = 1
  if task == "panorama":
    width = inputs.width
  if inputs.video:
    shown, size = _measure(inputs.video, pipeline.fps, limits)
    if task == "super_resolve":
      frames = shown
      width, height = (side * pipeline.upscale for side in size)
    elif task == "extend":
      frames = shown + inputs.times * frames
    else:
      shown = min(shown, frames + 1)
    check_pixels("Video", shown, size, limits)
    if task == "outpaint":
      check_edges(parse_expand(inputs.expand), size, (width, height))
  check_sides(_MADE, (width, height), limits)
  check_pixels(_MADE, frames, (width, height), limits)
  if frames > limits.max_seconds * pipeline.fps:
    raise UserError(
      _MADE,
      f"is too long: {frames / pipeline.fps:.1f} s",
      f"at most {limits.max_seconds:g} s are made here",
    )


def check_edges(
  edges: tuple[int, int, int, int], size: Size, made: Size
) -> None:
  """Raises a UserError if an edge that is added to a video is cut off again.

  Args:
    edges: pixels (left, top, right, bottom) to add.
    size: of the video.
    made: of what the model makes: the whole covers it, cut at its centre.
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
      # As much as makes the whole of the shape that is made.
      wanted = whole[not along] * made[along] / made[not along]
      more = math.ceil((wanted - whole[along]) / 2)
      where = "above and below" if along else "left and right"
      raise UserError(
        f"{LABELS[name]}",
        f"would be cut off again: the whole is {whole[0]}x{whole[1]}, "
        f"what is made {made[0]}x{made[1]}",
        f"add {more} pixels more {where}",
      )


def _measure(path: str, fps: float, limits: Limits) -> tuple[int, Size]:
  """Frames of a video at a frame rate, at most, and the size of the first."""
  with open_video(path) as track:
    stated_s = (track.container.duration or 0) / 1e6
    _, first = next(track.frames(), (0.0, None))
    if first is None:
      raise VideoError(path, "no frames: nothing in it can be decoded")
    height, width = upright_size(first, track.pixel_aspect)
  frames = math.ceil((stated_s or limits.max_seconds) * fps) or 1
  return frames, (width, height)
