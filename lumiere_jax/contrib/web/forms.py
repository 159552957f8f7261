"""Forms: validates what users filled in and builds the task from it.

All input errors are raised here, before a job enters the queue.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from pathlib import Path
import typing
from typing import Any

from jaxtyping import Bool
import numpy as np

from lumiere_jax.contrib.web.labels import LABELS, UPLOADED
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.tabs import EDGES
from lumiere_jax.contrib.web.uploads import (
  check_pixels,
  check_sides,
  take_mask,
  take_picture,
  take_video,
)
from lumiere_jax.errors import UserError, VideoError, check_choice, option
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import check_alpha
from lumiere_jax.inference.tasks import (
  TASKS,
  Extend,
  Outpaint,
  Panorama,
  SuperResolve,
  Task,
  make_task,
)
from lumiere_jax.media.container import measure, open_video
from lumiere_jax.media.images import write_image
from lumiere_jax.media.masks import parse_box, parse_expand
from lumiere_jax.media.resize import upright_size
from lumiere_jax.options import bare_type, options_of

Values = Mapping[str, Any]
"""Field -> what the user filled in; a missing field is empty."""

AS_TRAINED = "as trained"
SEEDS = 2**32
_MAX_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """A video or picture to make.

  Attributes:
    task: with its inputs; its files are copies in the job's folder.
    prompt: what to show.
    how: seed, negative prompt and settings.
    style: name of a style; '' is none.
    alpha: how much of it.
    uploads: see `labels.words`.
  """

  task: Task
  prompt: str
  how: SampleOptions
  style: str = ""
  alpha: float = 1.0
  uploads: Mapping[str, str] = dataclasses.field(default_factory=dict)


def uploads_of(values: Values) -> dict[str, str]:
  """Field -> name of the file that the user uploaded there."""
  paths = {name: values.get(name) for name in UPLOADED}
  return {name: Path(path).name for name, path in paths.items() if path}


def read(
  task: str, values: Values, pipeline: Pipeline, options: Options, folder: Path
) -> Asked:
  """Checks a form.

  Args:
    task: one of `TASKS`.
    values: the form.
    pipeline: that will run it.
    options: of the page.
    folder: for copies of uploaded files.
  """
  prompt = _text(values, "prompt")
  if TASKS[task].prompted and not prompt:
    raise UserError(
      option("prompt"), "is empty", "say what the video should show"
    )
  settings = read_settings(values, options.limits)
  job = make_task(task, _inputs(task, values, options.limits, folder))
  job.check()
  how = SampleOptions(
    seed=_whole(values, "seed", SEEDS - 1),
    negative_prompt=_text(values, "negative_prompt"),
    settings=settings,
  )
  _check_size(job, settings, pipeline, options.limits)
  style = _style(values, options) if task == "stylize" else ""
  alpha = _number(values, "alpha", 1.0)
  check_alpha(alpha, option("alpha"))
  return Asked(
    task=job,
    prompt=prompt,
    how=how,
    style=style,
    alpha=alpha,
    uploads=uploads_of(values),
  )


def read_settings(values: Values, limits: Limits) -> Settings:
  """Sampling settings; empty fields are as trained."""
  options = {k: v for k, v in options_of(Settings).items() if v.group}
  options.pop("guidance_interval")  # two fields on the page
  given = {name: _value(values, Settings, name) for name in options}
  given = {name: value for name, value in given.items() if value is not None}
  for name in ("steps", "ssr_steps"):
    if given.get(name, 0) > limits.max_steps:
      raise UserError(
        LABELS[name], f"is {given[name]}", f"give at most {limits.max_steps}"
      )
  return Settings(
    **given,
    guidance_interval=(
      _number(values, "guidance_from", 0.0),
      _number(values, "guidance_to", 1.0),
    ),
    chunk=1,  # so that a job can be cancelled at every step
  )


def _text(values: Values, name: str) -> str:
  text = str(values.get(name) or "").strip()
  if len(text) > _MAX_CHARACTERS:
    raise UserError(
      LABELS[name],
      f"is too long: {len(text)} characters",
      f"give at most {_MAX_CHARACTERS}",
    )
  return text


def _number(values: Values, name: str, default: Any) -> Any:
  """A finite number; the default if the field is empty."""
  value = values.get(name)
  if value is None or value == "":
    return default
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise UserError(LABELS[name], f"is {value!r}", "give a number")
  return number


def _whole(values: Values, name: str, most: int) -> int:
  number = _number(values, name, 0)
  if number != int(number) or not 0 <= number <= most:
    words = f"give a whole number from 0 to {most}"
    raise UserError(LABELS[name], f"is {number:.15g}", words)
  return int(number)


def _value(values: Values, cls: type, name: str) -> Any:
  """A field of the page as the type of an option; empty is its default."""
  kind = bare_type(typing.get_type_hints(cls)[name])
  if kind is str:
    text = str(values.get(name) or "")
    return None if text in ("", AS_TRAINED) else text
  number = _number(values, name, getattr(cls, name))
  if kind is not int or number is None:
    return number
  if number != int(number):
    raise UserError(LABELS[name], f"is {number:g}", "give a whole number")
  return int(number)


def _inputs(
  task: str, values: Values, limits: Limits, folder: Path
) -> dict[str, Any]:
  """The inputs of a task, by name."""
  options = options_of(TASKS[task])
  given: dict[str, Any] = {}
  for name in ("image", "last_image", "video"):
    if name in options:
      take = take_video if name == "video" else take_picture
      given[name] = take(values.get(name), name, limits, folder)
      if options[name].required and not given[name]:
        raise UserError(option(name), "is missing", "give one to work on")
  if "mask" in options:
    given |= _mask(values, limits, folder)
  if "expand" in options:
    given["expand"] = _expand(values, limits)
  if "uncomposited" in options:
    given["uncomposited"] = not values.get("composited", True)
  rest = [name for name in options if name not in ("mask", "box", *given)]
  return given | {name: _value(values, TASKS[task], name) for name in rest}


def _mask(values: Values, limits: Limits, folder: Path) -> dict[str, Any]:
  """The mask from paint, a box or a file: exactly one of them."""
  painted = values.get("strokes")
  ways = {
    "mask": take_mask(values.get("mask"), limits, folder),
    "box": _text(values, "box"),
    "strokes": painted is not None and painted.any(),
  }
  given = [name for name, value in ways.items() if value]
  if not given:
    raise UserError(
      option("mask"),
      "is empty",
      "paint over what is to be made anew, give a box, or a mask file",
    )
  if len(given) > 1:
    labels = " and ".join(LABELS[name] for name in given)
    raise UserError(labels, "are both given", "leave one of them empty")
  if ways["strokes"]:
    return {"mask": _write_mask(folder / "mask.png", painted)}
  if ways["box"]:
    parse_box(ways["box"])
  return {given[0]: ways[given[0]]}


def _write_mask(path: Path, strokes: Bool[np.ndarray, "h w"] | Any) -> str:
  white = np.where(strokes, 255, 0).astype(np.uint8)
  write_image(path, white[..., None].repeat(3, -1))
  return os.fspath(path)


def _expand(values: Values, limits: Limits) -> str:
  edges = [_whole(values, name, limits.max_side) for name in EDGES]
  if not any(edges):
    labels = ", ".join(LABELS[name] for name in EDGES)
    raise UserError(labels, "are 0", "give pixels to add around the video")
  return ",".join(map(str, edges))


def _style(values: Values, options: Options) -> str:
  if not options.styles:
    raise UserError(LABELS["style"], "has no choices", "the server offers none")
  style = str(values.get("style") or "")
  if not style:
    raise UserError(LABELS["style"], "is empty", "choose one")
  check_choice(option("style"), style, options.styles)
  return style


# Sizes and lengths.

Size = tuple[int, int]
"""(width, height)."""

_RESULT = "The result"
_PLANNED = ("text_to_video", "image_to_video", "cinemagraph", "stylize")
"""Tasks whose length and windows follow from the settings alone."""


def _check_size(
  task: Task, settings: Settings, pipeline: Pipeline, limits: Limits
) -> None:
  """Checks sizes and lengths of what a task reads and makes."""
  frames = pipeline.frames({"settings": settings})
  height, width = pipeline.resolution(settings)
  if task.name in _PLANNED:
    pipeline.plan(settings)
  if task.picture:
    frames = 1
  if isinstance(task, Panorama):
    width = task.width
  if video := getattr(task, "video", ""):
    shown, size = _measure(video, pipeline.fps)
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
  share = min(whole[0] / made[0], whole[1] / made[1])
  for number, (name, edge) in enumerate(zip(EDGES, edges, strict=True)):
    axis, other = number % 2, 1 - number % 2
    cut = (whole[axis] - share * made[axis]) / 2
    if 0 < edge <= cut:
      # What gives the enlarged video the aspect ratio of the result.
      wanted = whole[axis] * made[other] / made[axis]
      more = math.ceil((wanted - whole[other]) / 2)
      raise UserError(
        LABELS[name],
        f"would be cropped again: with all edges the video is "
        f"{whole[0]}x{whole[1]}, the result {made[0]}x{made[1]}",
        f"add {more} pixels more "
        + ("left and right" if axis else "above and below"),
      )


def _measure(path: str, fps: float) -> tuple[int, Size]:
  """How many frames a video has at a frame rate, and its size."""
  with open_video(path) as track:
    _, first = next(track.frames(), (0.0, None))
    if first is None:
      raise VideoError(path, "no frames: nothing in it can be decoded")
    height, width = upright_size(first, track.pixel_aspect)
  return measure(path).frames_at(fps), (width, height)
