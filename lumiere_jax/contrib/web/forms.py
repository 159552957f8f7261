"""What a person has filled in, checked, as a task and what it takes.

Everything that can be wrong is said here, before a job waits for its turn.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from jaxtyping import Bool
import numpy as np

from lumiere_jax.contrib.web.labels import LABELS
from lumiere_jax.contrib.web.options import Limits, Options
from lumiere_jax.contrib.web.sizes import check_size
from lumiere_jax.contrib.web.uploads import take_mask, take_picture, take_video
from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import check_alpha
from lumiere_jax.inference.tasks import TASKS, Inputs
from lumiere_jax.media.images import write_image
from lumiere_jax.media.masks import parse_box

Values = Mapping[str, Any]
"""Field -> what was filled in; see `fields`. What is not there is as empty."""


AS_TRAINED = "as trained"


SEEDS = 2**32


_MOST_LETTERS = 2000


_SETTINGS = {
  field.name
  for field in dataclasses.fields(Settings)
  if field.name not in ("guidance_interval", "size", "chunk", "sampler")
}


_WHOLE = {
  "steps",
  "ssr_steps",
  "num_frames",
  "window",
  "overlap",
  "oscillate_after",
  "window_batch",
  "frame_chunk",
}


_EDGES = ("left", "top", "right", "bottom")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """A video or picture to make.

  Attributes:
    task: one of `TASKS`.
    prompt: what to show.
    inputs: files, set aside, and numbers.
    how: seed, negative prompt and settings.
    style: name of a style; '' is none.
    alpha: how much of it.
  """

  task: str
  prompt: str
  inputs: Inputs
  how: SampleOptions
  style: str = ""
  alpha: float = 1.0


def read(
  task: str, values: Values, pipeline: Pipeline, options: Options, folder: Path
) -> Asked:
  """Checks what was filled in.

  Args:
    task: one of `TASKS`.
    values: what was filled in.
    pipeline: that it is for.
    options: of the page.
    folder: to set uploaded files aside in.

  Raises:
    UserError: something is missing, out of range or not what it should be.
  """
  prompt = _prompt(task, values)
  settings = read_settings(values, options.limits)
  inputs = _inputs(task, values, options.limits, folder)
  TASKS[task].check(task, inputs)
  how = SampleOptions(
    seed=_seed(values),
    negative_prompt=_text(values, "negative_prompt"),
    settings=settings,
  )
  check_size(task, inputs, how, pipeline, options.limits)
  style = _style(values, options) if task == "stylize" else ""
  alpha = _number(values, "alpha", 1.0)
  check_alpha(alpha, option("alpha"))
  return Asked(
    task=task, prompt=prompt, inputs=inputs, how=how, style=style, alpha=alpha
  )


def read_settings(values: Values, limits: Limits) -> Settings:
  """How to sample; what is left empty is as trained.

  Raises:
    UserError: a value is out of range.
  """
  said = {}
  for name in _SETTINGS:
    value = _number(values, name)
    if value is not None:
      said[name] = _whole(name, value) if name in _WHOLE else value
  sampler = values.get("sampler")
  if sampler and sampler != AS_TRAINED:
    said["sampler"] = sampler
  said["guidance_interval"] = (
    _number(values, "guidance_from", 0.0),
    _number(values, "guidance_to", 1.0),
  )
  for name in ("steps", "ssr_steps"):
    if said.get(name, 0) > limits.max_steps:
      raise UserError(
        f"{LABELS[name]}",
        f"is {said[name]}",
        f"at most {limits.max_steps} are taken here",
      )
  return Settings(**said, chunk=1)  # a job can be cancelled at every step


def _prompt(task: str, values: Values) -> str:
  prompt = _text(values, "prompt")
  if TASKS[task].prompted and not prompt:
    raise UserError(
      option("prompt"), "is empty", "say what the video should show"
    )
  return prompt


def _text(values: Values, name: str) -> str:
  text = str(values.get(name) or "").strip()
  if len(text) > _MOST_LETTERS:
    raise UserError(
      f"{LABELS[name]}",
      f"is too long: {len(text)} letters",
      f"at most {_MOST_LETTERS} are taken here",
    )
  return text


def _seed(values: Values) -> int:
  seed = _number(values, "seed", 0)
  if seed != int(seed) or not 0 <= seed < SEEDS:
    raise UserError(
      "", f"Seed is {seed:.15g}", f"give a whole number from 0 to {SEEDS - 1}"
    )
  return int(seed)


def _number(values: Values, name: str, default: float | None = None):
  value = values.get(name)
  if value is None or value == "":
    return default
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{LABELS[name]}", f"is {value!r}", "give a number"
    ) from error
  if not math.isfinite(number):
    raise UserError(f"{LABELS[name]}", f"is {value}", "give a number")
  return number


def _whole(name: str, value: float) -> int:
  if value != int(value):
    raise UserError(f"{LABELS[name]}", f"is {value:g}", "give a whole number")
  return int(value)


def _inputs(task: str, values: Values, limits: Limits, folder: Path) -> Inputs:
  needs, takes = TASKS[task].needs, TASKS[task].takes
  known = {name for need in needs for name in need.split(" or ")} | {*takes}
  said: dict[str, Any] = {}
  for name in ("image", "last_image"):
    if name in known:
      said[name] = take_picture(values.get(name), name, limits, folder)
  if "video" in known:
    said["video"] = take_video(values.get("video"), "video", limits, folder)
  _require(task, said)
  if "mask" in known:
    said |= _mask(values, limits, folder)
  if "expand" in known:
    said["expand"] = _expand(values, limits)
  for name in {"feather", "times", "context", "width"} & known:
    said[name] = _whole(name, _number(values, name, getattr(Inputs, name)))
  if "strength" in known:
    said["strength"] = _number(values, "strength", Inputs.strength)
    if not 0 < said["strength"] <= 1:
      raise UserError(
        "",
        f"Strength is {said['strength']:g}",
        "give a number above 0, at most 1",
      )
  if "uncomposited" in known:
    said["uncomposited"] = not values.get("composited", True)
  return Inputs(**said)


def _require(task: str, said: Mapping[str, str]) -> None:
  """Files that a task cannot do without, in words of the page."""
  if task == "image_to_video" and not any(said.values()):
    raise UserError(
      "", "There is no picture", "give one to begin with, or to end"
    )
  for name in ("image", "video"):
    if name in TASKS[task].needs and not said[name]:
      what = {"image": "picture", "video": "video"}[name]
      raise UserError("", f"There is no {what}", "give one to work on")


def _mask(values: Values, limits: Limits, folder: Path) -> dict[str, str]:
  """One of the three ways to say where pixels are made anew."""
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
      "", f"{' and '.join(given)} are both there", "leave one of them empty"
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
  edges = [_whole(name, _number(values, name, 0)) for name in _EDGES]
  for name, edge in zip(_EDGES, edges, strict=True):
    if not 0 <= edge <= limits.max_side:
      raise UserError(
        f"{LABELS[name]}",
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
    raise UserError("", "Style is empty", "choose one")
  check_choice(option("style"), style, options.styles)
  return style
