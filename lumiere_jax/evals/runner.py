"""Scores a model task by task, and writes the results after each."""

from collections.abc import Mapping
import dataclasses
import json
import os
from pathlib import Path
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.evals.scenes import TaskRun
from lumiere_jax.evals.tasks import TASKS, choose
from lumiere_jax.evals.verdicts import ALL, SHARE, Result, Score, Table
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.media.images import contact_sheet, write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage.atomic import check_writable, write_json, writing
from lumiere_jax.storage.files import check_unused

VERDICTS = "verdicts.jsonl"
_UNITS = {"db": "(dB)", "hz": "(Hz)", "psnr": "PSNR"}
_GAP = 2  # White pixels between a source and its video.


class SampleWriter:
  """A folder of the generated videos and their verdicts.

  TASK/NUMBER.mp4             the source, if any, and the video beside it
  TASK/NUMBER-not-WHAT.png    frames of a video with wrong attributes
  verdicts.jsonl              prompt and verdict of each video
  """

  def __init__(self, folder: str | os.PathLike, fps: float):
    """Starts a folder, which must be new or empty."""
    check_empty(folder)
    self._folder, self._fps = Path(folder), fps
    self._count: dict[str, int] = {}

  def write(self, task: str, result: Result) -> None:
    """Writes one video and its verdict."""
    number = self._count[task] = self._count.get(task, 0) + 1
    shown = result.video
    if result.source is not None:
      source = np.broadcast_to(result.source, shown.shape)
      gap = np.full((*shown.shape[:2], _GAP, 3), 255, np.uint8)
      shown = np.concatenate([source, gap, shown], axis=2)
    path = self._folder / task / f"{number:04d}.mp4"
    write_video(path, shown, self._fps)
    right = result.verdict.right
    wrong = [name for name in right if not right[name] and name != ALL]
    if wrong:
      name = f"{number:04d}-not-{'-'.join(wrong)}.png"
      write_image(path.with_name(name), contact_sheet(shown))
    line = {
      "task": task,
      "number": number,
      "row": result.row,
      "prompt": result.prompt,
      "seed": result.seed,
      **dataclasses.asdict(result.verdict),
    }
    with (self._folder / VERDICTS).open("a") as file:
      file.write(json.dumps(line) + "\n")


def check_empty(folder: str | os.PathLike) -> None:
  """Raises a UserError unless the folder is new or empty."""
  folder = Path(folder)
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise UserError(
      option("keep", folder), "is not empty", "choose a new folder"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """The scores of one task, and the seconds it took with compilation."""

  table: Table
  seconds: float


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRequest:
  """A model to score."""

  metric: str = setting(
    "alignment", "Metric: alignment.", choices=("alignment",)
  )
  models: tuple[str, ...] = setting(
    (),
    "Bundle, workdir of a run, or name of a Hugging Face repository. Give it "
    "again to add stages that are missing: base, super-resolution, text "
    "encoder.",
    name="model",
  )
  out: str = setting("", "JSON file for all numbers.")
  markdown: str = setting("", "Markdown file for tables, for a model card.")
  keep: str = setting(
    "", "Folder for the videos, and for pictures of those that fail."
  )
  overwrite: bool = setting(False, "Replace files that exist already.")
  tasks: tuple[str, ...] = setting(
    (),
    f"Of {', '.join(TASKS)}. Default: all that the model supports.",
    comma=True,
  )
  count: int = setting(128, "Videos for each row of the tables.", least=2)
  seed: int = setting(0, "Random seed of scenes and noise.", least=0)
  batch_size: int = setting(
    1, "How many text-conditioned videos are sampled together.", least=1
  )
  two_objects: float = setting(
    0.1, "Fraction of text_to_video prompts with two objects.", least=0, most=1
  )
  strength: float | None = setting(
    None,
    "Strength of video_to_video, above 0 to 1. Default: that of the sample "
    "command.",
    above=0,
    most=1,
  )
  style: str = setting(
    "",
    "Style for stylize, with the look of the procedural scenes: bundle or "
    "workdir of a fine-tuned image model, or an adapter.",
  )
  settings: Settings = dataclasses.field(default_factory=Settings)
  mesh: MeshConfig | None = setting(
    None, "DATA,FSDP,SPACE: devices to sample on, as for the sample command."
  )


def evaluate(request: EvalRequest) -> None:
  """Scores a model; invalid requests fail before anything is sampled."""
  check_values(request)
  for name in request.tasks:
    check_choice(option("tasks"), name, TASKS)
  if not request.models:
    raise UserError(
      option("model"),
      "is missing",
      "give a bundle or the workdir of a training run",
    )
  if request.seed + request.count > 2**32:
    raise UserError(
      option("seed", request.seed),
      f"and the {request.count - 1} seeds after it pass 2^32",
      "choose a smaller one",
    )
  _check_paths(request)
  opened = [bundles.open_bundle(path) for path in request.models]
  pipeline = Pipeline.from_pretrained(*request.models, mesh=request.mesh)
  score(pipeline, request, stages_of(opened))


def score(
  pipeline: Pipeline,
  request: EvalRequest,
  stages: Mapping[str, Mapping[str, Any]],
) -> dict[str, Scored]:
  """Scores task by task and writes the files after each.

  Ctrl-C keeps the finished tasks and exits with code 130. `stages` describes
  each stage in the files; see `stages_of`.
  """
  tasks = choose(pipeline, request.settings, request.tasks, request.style)
  about = _about(pipeline, request, stages)
  writer = SampleWriter(request.keep, pipeline.fps) if request.keep else None
  done: dict[str, Scored] = {}
  total = sum(task.videos for task in tasks.values()) * request.count
  try:
    with tqdm(total=total, unit="video", dynamic_ncols=True) as bar:
      for name, task in tasks.items():
        bar.set_description(name)
        start = time.monotonic()

        def on_result(result: Result, name: str = name) -> None:
          bar.update()
          if writer:
            writer.write(name, result)

        run = TaskRun(
          pipeline=pipeline,
          count=request.count,
          settings=request.settings,
          seed=request.seed,
          on_result=on_result,
        )
        options = {key: getattr(request, key) for key in task.options}
        task.score(run, **options)
        seconds = time.monotonic() - start
        done[name] = Scored(table=run.table(), seconds=seconds)
        write_json(request.out, to_json(about, done))
        if request.markdown:
          with writing(request.markdown) as file:
            file.write(to_markdown(about, done).encode())
  except KeyboardInterrupt:
    kept = f"and written to {request.out}" if done else "nothing is written"
    print(
      f"\nstopped: {len(done)} of {len(tasks)} tasks are scored, {kept}",
      file=sys.stderr,
    )
    sys.exit(130)
  print(to_markdown(about, done), end="")
  return done


def stages_of(opened: list[bundles.Bundle]) -> dict[str, dict[str, Any]]:
  """Stage -> step, data and licence; earlier bundles take precedence."""
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


def _about(
  pipeline: Pipeline,
  request: EvalRequest,
  stages: Mapping[str, Mapping[str, Any]],
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
  """The name of a bundle without its local path; workdirs as given."""
  return Path(path).resolve().name if bundles.is_bundle(path) else path


def _check_paths(request: EvalRequest) -> None:
  if not request.out:
    raise UserError(
      option("out"), "is missing", "give a .json file for the scores"
    )
  if Path(request.out).suffix != ".json":
    raise UserError(
      option("out", request.out), "is not a .json file", "end its name in .json"
    )
  for flag, path in (("out", request.out), ("markdown", request.markdown)):
    if path and os.path.isdir(path):
      raise UserError(option(flag, path), "is a folder", "give a file")
    if path:
      check_unused(path, request.overwrite)
  if request.markdown and os.path.abspath(request.markdown) == os.path.abspath(
    request.out
  ):
    raise UserError(
      option("markdown", request.markdown),
      f"is {option('out')} too",
      "give another file",
    )
  if request.keep:
    check_empty(request.keep)
  inside = request.keep and os.path.join(request.keep, VERDICTS)
  check_writable(*filter(None, (request.out, request.markdown, inside)))


def to_json(
  about: Mapping[str, Any], tasks: Mapping[str, Scored]
) -> dict[str, Any]:
  """All scores; `about` describes the model and how it was scored."""
  return {
    **about,
    "seconds": round(sum(scored.seconds for scored in tasks.values()), 1),
    "tasks": {
      name: {
        "seconds": round(scored.seconds, 1),
        "scores": {
          row: {k: dataclasses.asdict(score) for k, score in scores.items()}
          for row, scores in scored.table.items()
        },
      }
      for name, scored in tasks.items()
    },
  }


def to_markdown(about: Mapping[str, Any], tasks: Mapping[str, Scored]) -> str:
  """A table for each task; see `to_json`."""
  steps = "".join(
    f"{name} at step {stage['step']}; "
    for name, stage in about["stages"].items()
    if "step" in stage
  )
  sampling = "; ".join(
    f"{name} sampled by {own['sampler']} in {own['steps']} steps at guidance "
    f"{own['guidance_scale']:g}"
    for name, own in about["sampling"].items()
  )
  parts = [
    f"{', '.join(about['model'])}: {steps}seed {about['seed']}; {sampling}. In "
    "brackets: 95% intervals."
  ]
  for name, scored in tasks.items():
    parts.append(f"**{_words(name)}**. {TASKS[name].about}")
    parts.append(_table(scored.table))
  return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
  columns = list(dict.fromkeys(k for scores in table.values() for k in scores))
  lines = [["", *map(_words, columns)], ["---"] * (len(columns) + 1)]
  for row, scores in table.items():
    cells = [_cell(scores[k]) if k in scores else "" for k in columns]
    lines.append([_words(row), *cells])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(score: Score) -> str:
  scale, end = (100, "%") if score.kind == SHARE else (1, "")
  value, low, high = (
    f"{scale * x:.{0 if scale > 1 else 2}f}"
    for x in (score.value, score.low, score.high)
  )
  return f"{value}{end} ({low} to {high}; n={score.count})"


def _words(name: str) -> str:
  return " ".join(_UNITS.get(word, word) for word in name.split("_"))
