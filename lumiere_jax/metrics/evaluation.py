"""What `evaluate` is asked for, checked, done and written."""

from collections.abc import Callable, Mapping
import dataclasses
import os
from pathlib import Path
import sys
import time
from typing import Any

import jax
from tqdm import tqdm

from lumiere_jax.io import bundle as bundles
from lumiere_jax.io.atomic import write_json, writing
from lumiere_jax.metrics.judged import Judged
from lumiere_jax.metrics.keeping import Keeper, check_keep
from lumiere_jax.metrics.report import Scored, to_json, to_markdown
from lumiere_jax.metrics.tasks import TASKS, Task, choose
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings
from lumiere_jax.typing import UserError, check_choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A model to score.

  Attributes:
    metric: one of `METRICS`.
    models: bundles or workdirs; each adds the stages the others lack.
    out: JSON file for all numbers.
    markdown: file for tables; '' is none.
    keep: folder for the videos that are judged; '' is none.
    overwrite: whether files that are there are replaced.
    tasks: to score; none is all that the model can do.
    count: of videos for each row.
    seed: of scenes and noise.
    batch_size: of videos made of prompts alone, sampled at once.
    two_objects: share of 'text_to_video' prompts with two.
    strength: of 'video_to_video'; None: the pipeline's default.
    style: for 'stylize', of the procedural scenes; '' is none.
    settings: how to sample.
    mesh: how the devices share the work; None: one does it.
  """

  metric: str
  models: tuple[str, ...]
  out: str
  markdown: str = ""
  keep: str = ""
  overwrite: bool = False
  tasks: tuple[str, ...] = ()
  count: int = 128
  seed: int = 0
  batch_size: int = 1
  two_objects: float = 0.1
  strength: float | None = None
  style: str = ""
  settings: Settings = dataclasses.field(default_factory=Settings)
  mesh: MeshConfig | None = None


def evaluate(request: Request) -> None:
  """Scores a model; what cannot work fails before sampling.

  Raises:
    UserError: a flag or a bundle cannot be used.
  """
  check_choice("--metric", request.metric, METRICS)
  if not request.models:
    raise UserError(
      "--model is missing; give a bundle, or the workdir of a training run"
    )
  _check_paths(request)
  METRICS[request.metric](request)


def alignment(request: Request) -> None:
  """Whether a model of the procedural scenes makes what it is asked for.

  Raises:
    UserError: a flag or a bundle cannot be used.
  """
  _check_numbers(request)
  opened = [bundles.open_bundle(path) for path in request.models]
  pipeline = Pipeline.from_pretrained(*request.models, mesh=request.mesh)
  score(pipeline, request, stages_of(opened))


METRICS: dict[str, Callable[[Request], None]] = {"alignment": alignment}
"""Name -> what scores and writes."""


def score(
  pipeline: Pipeline, request: Request, stages: Mapping[str, Mapping[str, Any]]
) -> dict[str, Scored]:
  """Scores tasks one by one; what is scored is written after each.

  An interruption keeps that, and says how much it is.

  Args:
    pipeline: to score.
    request: how.
    stages: what is known of each, for the files.

  Raises:
    UserError: a task cannot be done, or a file not be written.
  """
  tasks = choose(pipeline, request.settings, request.tasks, request.style)
  about = _about(pipeline, request, stages)
  keeper = Keeper(request.keep, pipeline.fps) if request.keep else None
  done: dict[str, Scored] = {}
  total = sum(task.videos for task in tasks.values()) * request.count
  try:
    with tqdm(total=total, unit="video", dynamic_ncols=True) as bar:
      for name, task in tasks.items():
        bar.set_description(name)
        done[name] = _score(pipeline, request, name, task, keeper, bar)
        _write(request, about, done)
  except KeyboardInterrupt:
    kept = f"and kept in {request.out}" if done else "so nothing is kept"
    print(
      f"\nstopped: {len(done)} of {len(tasks)} tasks are scored, {kept}",
      file=sys.stderr,
    )
    sys.exit(130)
  print(to_markdown(about, done), end="")
  return done


def stages_of(opened: list[bundles.Bundle]) -> dict[str, dict[str, Any]]:
  """Name -> step, data and licence of the stages, the first ones' winning."""
  return {
    name: {
      key: part.meta[key]
      for key in ("step", "trained_on", "licence")
      if key in part.meta
    }
    for bundle in reversed(opened)
    for name, part in bundle.parts.items()
    if name != bundles.TEXT
  }


def _score(
  pipeline: Pipeline,
  request: Request,
  name: str,
  task: Task,
  keeper: Keeper | None,
  bar: tqdm,
) -> Scored:
  def hear(judged: Judged) -> None:
    bar.update()
    if keeper:
      keeper.keep(name, judged)

  begun = time.monotonic()
  table = task.score(
    pipeline,
    request.count,
    request.settings,
    request.seed,
    hear=hear,
    **{option: getattr(request, option) for option in task.options},
  )
  return Scored(table=table, seconds=time.monotonic() - begun)


def _about(
  pipeline: Pipeline, request: Request, stages: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  settings = request.settings
  return {
    "metric": request.metric,
    "model": [_name(path) for path in request.models],
    "stages": stages,
    "count": request.count,
    "seed": request.seed,
    "two_objects": request.two_objects,
    "strength": request.strength,
    "style": request.style,
    "settings": dataclasses.asdict(settings),
    "sampling": {
      slot: dataclasses.asdict(settings.of(slot, stage.config.defaults))
      for slot, stage in pipeline.stages.items()
    },
    "device": jax.devices()[0].device_kind,
  }


def _name(path: str) -> str:
  """Of a bundle, as it may be told to others: not where it lies here."""
  return Path(path).resolve().name if bundles.is_bundle(path) else path


def _write(
  request: Request, about: Mapping[str, Any], done: Mapping[str, Scored]
) -> None:
  write_json(request.out, to_json(about, done))
  if request.markdown:
    with writing(request.markdown) as file:
      file.write(to_markdown(about, done).encode())


def _check_paths(request: Request) -> None:
  if not request.out:
    raise UserError("--out is missing; name a .json file for the scores")
  if Path(request.out).suffix != ".json":
    raise UserError(f"--out={request.out} holds JSON; let it end in .json")
  for flag, path in (("out", request.out), ("markdown", request.markdown)):
    if path and os.path.isdir(path):
      raise UserError(f"--{flag}={path} is a folder; name a file in it")
    if path and os.path.exists(path) and not request.overwrite:
      raise UserError(
        f"--{flag}={path} is there already; name another file, or give "
        "--overwrite"
      )
  if request.keep:
    check_keep(request.keep)


def _check_numbers(request: Request) -> None:
  for name in request.tasks:
    check_choice("--tasks", name, TASKS)
  for flag, value, least in (
    ("count", request.count, 2),
    ("seed", request.seed, 0),
    ("batch_size", request.batch_size, 1),
  ):
    if value < least:
      raise UserError(f"--{flag}={value} must be at least {least}")
  if not 0 <= request.two_objects <= 1:
    raise UserError(
      f"--two_objects={request.two_objects:g} must be from 0 to 1"
    )
  if request.strength is not None and not 0 < request.strength <= 1:
    raise UserError(
      f"--strength={request.strength:g} must be above 0, at most 1"
    )
