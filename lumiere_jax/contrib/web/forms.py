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

from lumiere_jax.contrib.web.labels import LABELS
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.sizes import check_size
from lumiere_jax.contrib.web.tabs import EDGES
from lumiere_jax.contrib.web.uploads import take_mask, take_picture, take_video
from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import check_alpha
from lumiere_jax.inference.tasks import TASKS, Task, make_task
from lumiere_jax.media.images import write_image
from lumiere_jax.media.masks import parse_box
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
  """

  task: Task
  prompt: str
  how: SampleOptions
  style: str = ""
  alpha: float = 1.0


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
  prompt = _prompt(task, values)
  settings = read_settings(values, options.limits)
  job = make_task(task, _inputs(task, values, options.limits, folder))
  job.check()
  how = SampleOptions(
    seed=_seed(values),
    negative_prompt=_text(values, "negative_prompt"),
    settings=settings,
  )
  check_size(job, how, pipeline, options.limits)
  style = _style(values, options) if task == "stylize" else ""
  alpha = _number(values, "alpha", 1.0)
  check_alpha(alpha, option("alpha"))
  return Asked(task=job, prompt=prompt, how=how, style=style, alpha=alpha)


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


def _prompt(task: str, values: Values) -> str:
  prompt = _text(values, "prompt")
  if TASKS[task].prompted and not prompt:
    raise UserError(
      option("prompt"), "is empty", "say what the video should show"
    )
  return prompt


def _text(values: Values, name: str) -> str:
  text = str(values.get(name) or "").strip()
  if len(text) > _MAX_CHARACTERS:
    raise UserError(
      LABELS[name],
      f"is too long: {len(text)} characters",
      f"give at most {_MAX_CHARACTERS}",
    )
  return text


def _seed(values: Values) -> int:
  seed = _number(values, "seed", 0)
  if seed != int(seed) or not 0 <= seed < SEEDS:
    raise UserError(
      LABELS["seed"],
      f"is {seed:.15g}",
      f"give a whole number from 0 to {SEEDS - 1}",
    )
  return int(seed)


def _number(values: Values, name: str, default: float | None = None):
  value = values.get(name)
  if value is None or value == "":
    return default
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise UserError(LABELS[name], f"is {value!r}", "give a number") from error
  if not math.isfinite(number):
    raise UserError(LABELS[name], f"is {value}", "give a number")
  return number


def _whole(name: str, value: float) -> int:
  if value != int(value):
    raise UserError(LABELS[name], f"is {value:g}", "give a whole number")
  return int(value)


def _value(values: Values, cls: type, name: str) -> str | float | None:
  """A field of the page as the type of an option; empty is its default."""
  kind = bare_type(typing.get_type_hints(cls)[name])
  if kind is str:
    text = str(values.get(name) or "")
    return None if text in ("", AS_TRAINED) else text
  number = _number(values, name, getattr(cls, name))
  is_whole = kind is int and number is not None
  return _whole(name, number) if is_whole else number


def _inputs(
  task: str, values: Values, limits: Limits, folder: Path
) -> dict[str, Any]:
  """The inputs of a task, by name."""
  options = options_of(TASKS[task])
  uploads = {"image": take_picture, "last_image": take_picture}
  uploads["video"] = take_video
  given: dict[str, Any] = {
    name: take(values.get(name), name, limits, folder)
    for name, take in uploads.items()
    if name in options
  }
  _require(task, given)
  if "mask" in options:
    given |= _mask(values, limits, folder)
  for name in options:
    if name in given or name in ("mask", "box"):
      continue
    if name == "expand":
      given[name] = _expand(values, limits)
    elif name == "uncomposited":
      given[name] = not values.get("composited", True)
    else:
      given[name] = _value(values, TASKS[task], name)
  return given


def _require(task: str, files: Mapping[str, str]) -> None:
  """Raises a UserError where a picture or video is missing."""
  if task == "image_to_video" and not any(files.values()):
    raise UserError(
      "", "There is no picture", "give one to begin with, or to end with"
    )
  options = options_of(TASKS[task])
  for name, path in files.items():
    if options[name].required and not path:
      what = LABELS[name].lower()
      raise UserError("", f"There is no {what}", "give one to work on")


def _mask(values: Values, limits: Limits, folder: Path) -> dict[str, str]:
  """The mask from paint, a box or a file: exactly one of them."""
  painted = values.get("strokes")
  ways = {
    "mask": take_mask(values.get("mask"), limits, folder),
    "box": _text(values, "box"),
    "strokes": "" if painted is None or not painted.any() else "painted",
  }
  given = [LABELS[name] for name, value in ways.items() if value]
  if not given:
    raise UserError(
      "",
      "The mask is empty",
      "paint over what is to be made anew, give a box, or a mask file",
    )
  if len(given) > 1:
    raise UserError(
      " and ".join(given), "are both given", "leave one of them empty"
    )
  if ways["strokes"]:
    return {"mask": _painted(painted, folder)}
  if ways["box"]:
    parse_box(ways["box"])
  return {name: ways[name] for name in ("mask", "box") if ways[name]}


def _painted(strokes: Bool[np.ndarray, "h w"], folder: Path) -> str:
  path = folder / "mask.png"
  white = np.where(strokes, 255, 0).astype(np.uint8)
  write_image(path, white[..., None].repeat(3, -1))
  return os.fspath(path)


def _expand(values: Values, limits: Limits) -> str:
  edges = [_whole(name, _number(values, name, 0)) for name in EDGES]
  for name, edge in zip(EDGES, edges, strict=True):
    if not 0 <= edge <= limits.max_side:
      raise UserError(
        LABELS[name],
        f"is {edge}",
        f"give pixels to add, 0 to {limits.max_side}",
      )
  if not any(edges):
    raise UserError(
      "", "All edges are 0", "give pixels to add around the video"
    )
  return ",".join(map(str, edges))


def _style(values: Values, options: Options) -> str:
  if not options.styles:
    raise UserError(
      "", "There is no style to choose from", "the server offers none"
    )
  style = str(values.get("style") or "")
  if not style:
    raise UserError(LABELS["style"], "is empty", "choose one")
  check_choice(option("style"), style, options.styles)
  return style
