"""What `sample` is asked for, checked, done and written."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
import sys
import typing
from typing import Any

import numpy as np

from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.prompt_files import PromptLine, check_options
from lumiere_jax.inference.sampling_inputs import Progress
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.tasks import TASKS, Inputs, Task
from lumiere_jax.media.images import (
  check_image_output,
  contact_sheet,
  side_by_side,
  write_image,
)
from lumiere_jax.media.video_writer import check_output, write_video
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.stages.conditioning import to_uint8
from lumiere_jax.storage.files import check_unused, slug, unused

_OPTIONS = ("negative_prompt",)
"""What a line of a prompt file can say besides inputs and settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """Where and how what is made is written.

  Attributes:
    out: file, or FOLDER/ of png files; of several videos a folder for them,
      or a file whose name they are told apart by numbers behind. '' is a name
      of the task, prompt and seed that is not taken.
    format: ending of the files in a folder of several.
    overwrite: whether what is there is replaced; else that is an error.
    contact_sheet: picture of frames to write; '' is none.
    preview_every: steps between pictures of the canvas beside `out`; 0: none.
  """

  out: str = ""
  format: str = ""
  overwrite: bool = False
  contact_sheet: str = ""
  preview_every: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
  """Videos or pictures to make.

  Attributes:
    models: bundles or workdirs; each adds the stages the others lack.
    task: one of `TASKS`.
    lines: prompts, with what is their own.
    negative_prompt: what to steer away from.
    seed: one seed gives one video; the next samples take the next ones.
    num_samples: videos of each prompt.
    batch_size: of these, sampled at once.
    inputs: files and numbers that the task takes.
    output: where what is made goes.
    settings: how to sample.
    adapters: low-rank adapters to merge into the stages they belong to.
    adapter_scale: how much of them.
    styles: fine-tuned image models or adapters to blend in.
    alphas: how much of these; of several, videos are shown side by side.
    mesh: how the devices share the work; None: one does it.
  """

  models: tuple[str, ...]
  task: str
  lines: tuple[PromptLine, ...]
  negative_prompt: str = ""
  seed: int = 0
  num_samples: int = 1
  batch_size: int = 1
  inputs: Inputs = dataclasses.field(default_factory=Inputs)
  output: Output = dataclasses.field(default_factory=Output)
  settings: Settings = dataclasses.field(default_factory=Settings)
  adapters: tuple[str, ...] = ()
  adapter_scale: float = 1.0
  styles: tuple[str, ...] = ()
  alphas: tuple[float, ...] = (1.0,)
  mesh: MeshConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoJob:
  """One prompt of a request, with all its own options put in.

  Attributes:
    prompt: what to show.
    seeds: one for each video.
    paths: where each goes.
    negative_prompt, inputs, settings: see `Request`.
  """

  prompt: str
  seeds: tuple[int, ...]
  paths: tuple[str, ...]
  negative_prompt: str
  inputs: Inputs
  settings: Settings


def run_batch(request: SampleRequest) -> None:
  """Makes and writes all; what cannot work fails before sampling.

  An interruption keeps what is written, and says how much that is.

  Raises:
    UserError: a flag or a bundle cannot be used.
  """
  _check_models(request)
  check_choice(option("task"), request.task, TASKS)
  task = TASKS[request.task]
  if request.task == "stylize" and not request.styles:
    raise UserError(
      option("style"),
      f"is missing: {option('task')}=stylize needs one, made by "
      "--config=configs/style.py",
    )
  jobs = list(_jobs(request, task))
  for job in jobs:
    task.check(request.task, job.inputs)
    if task.prompted and not job.prompt.strip():
      raise UserError(
        option("prompt"), "is empty", "say what the video should show"
      )
  _check_paths(request, task, jobs)
  pipeline = Pipeline.from_pretrained(
    *request.models,
    adapters=request.adapters,
    adapter_scale=request.adapter_scale,
    mesh=request.mesh,
  )
  pipelines = _in_styles(pipeline, request)
  done, total = 0, sum(len(job.seeds) for job in jobs)
  try:
    for job in jobs:
      for seeds, paths in _batches(job, request.batch_size):
        _make(pipelines, request, task, job, seeds, paths)
        done += len(seeds)
  except KeyboardInterrupt:
    print(f"\nstopped: {done} of {total} are made, and kept", file=sys.stderr)
    sys.exit(130)


def show_grid(request: SampleRequest) -> None:
  """Prints as JSON the log-SNRs that each stage's steps start from.

  -Infinity is pure noise. Nothing is sampled.

  Raises:
    UserError: a flag or a bundle cannot be used.
  """
  _check_models(request)
  check_choice(option("task"), request.task, TASKS)
  pipeline = Pipeline.from_pretrained(*request.models)
  settings = request.settings
  if request.task == "text_to_image":
    settings = dataclasses.replace(settings, num_frames=1)
  is_edit = request.task == "video_to_video"
  strength = {"base": request.inputs.strength if is_edit else 1.0}
  _, windows = pipeline.plan(settings)
  grids = {
    name: pipeline.log_snrs(
      name, settings, windows.get(name), strength.get(name, 1.0)
    )[:-1]
    for name in pipeline.stages
    if name != "base" or request.task != "super_resolve"
  }
  print(
    json.dumps({k: [round(float(x), 4) for x in v] for k, v in grids.items()})
  )


def _check_models(request: SampleRequest) -> None:
  if not request.models:
    raise UserError(
      option("model"),
      "is missing",
      "give a bundle, or the workdir of a training run",
    )


def _jobs(request: SampleRequest, task: Task) -> Iterator[VideoJob]:
  known = {
    name: kind
    for cls in (Inputs, Settings)
    for name, kind in typing.get_type_hints(cls).items()
  } | dict.fromkeys(_OPTIONS, str)
  check_options(request.lines, known)
  paths = _paths(request, task)
  for line in request.lines:
    own = {
      name: _parse(line.where, name, text, known[name])
      for name, text in line.options.items()
    }
    first = request.seed if line.seed is None else line.seed
    of = lambda config, own=own: dataclasses.replace(
      config, **{k: v for k, v in own.items() if hasattr(config, k)}
    )
    seeds = tuple(first + k for k in range(request.num_samples))
    yield VideoJob(
      prompt=line.prompt,
      seeds=seeds,
      paths=tuple(paths(line.prompt, seed) for seed in seeds),
      negative_prompt=own.get("negative_prompt", request.negative_prompt),
      inputs=of(request.inputs),
      settings=of(request.settings),
    )


def _parse(where: str, name: str, text: str, kind: Any) -> Any:
  """An option of a prompt file as its type."""
  kinds = [k for k in (bool, int, float, str) if k in (kind, *_parts(kind))]
  if not kinds:
    raise UserError(
      f"{where}:", f"{name} cannot differ by line", f"give {option(name)}"
    )
  if kinds[0] is bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() in words:
      return words[text.lower()]
  else:
    try:
      return kinds[0](text)
    except ValueError:
      pass
  raise UserError(
    f"{where}:", f"{name}={text!r} is no {kinds[0].__name__}", "mend the line"
  )


def _parts(kind: Any) -> tuple[Any, ...]:
  return typing.get_args(kind)


def _paths(request: SampleRequest, task: Task) -> Callable[[str, int], str]:
  """(prompt, seed) -> where that video goes; no name comes twice."""
  output = request.output
  ending = "." + (output.format or ("png" if task.picture else "mp4"))
  several = len(request.lines) * request.num_samples > 1
  count = iter(range(1, 10**9))

  def path(prompt: str, seed: int) -> str:
    number = next(count)
    name = "-".join(filter(None, (request.task, slug(prompt), f"seed{seed}")))
    if not output.out:
      return unused(name + ending)
    if not several:
      return output.out
    out = Path(output.out)
    if out.suffix and not output.out.endswith("/"):
      return os.fspath(out.with_name(f"{out.stem}-{number}{out.suffix}"))
    return os.fspath(out / f"{number:04d}-{slug(prompt)}-seed{seed}{ending}")

  return path


def _check_paths(
  request: SampleRequest, task: Task, jobs: Sequence[VideoJob]
) -> None:
  output = request.output
  check = check_image_output if task.picture else check_output
  for job in jobs:
    for path in job.paths:
      check(path)
      check_unused(path, output.overwrite)
  if output.contact_sheet:
    check_image_output(output.contact_sheet)
    check_unused(output.contact_sheet, output.overwrite)


def _batches(
  job: VideoJob, size: int
) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
  for first in range(0, len(job.seeds), size):
    part = slice(first, first + size)
    yield job.seeds[part], job.paths[part]


def _in_styles(pipeline: Pipeline, request: SampleRequest) -> list[Pipeline]:
  """One for each alpha; the one there is where no style is asked for."""
  if not request.styles:
    return [pipeline]
  return [
    functools.reduce(
      lambda styled, style, alpha=alpha: styled.styled(style, alpha),
      request.styles,
      pipeline,
    )
    for alpha in request.alphas
  ]


def _make(
  pipelines: Sequence[Pipeline],
  request: SampleRequest,
  task: Task,
  job: VideoJob,
  seeds: tuple[int, ...],
  paths: tuple[str, ...],
) -> None:
  settings, output = job.settings, request.output
  how = SampleOptions(
    seed=seeds, negative_prompt=job.negative_prompt, settings=settings
  )
  preview = Path(paths[0]).with_name(f"{Path(paths[0]).stem}-preview.png")
  if output.preview_every:
    how["settings"] = dataclasses.replace(settings, chunk=output.preview_every)
    how["on_progress"] = lambda progress: _preview(preview, progress)
  made = side_by_side(
    [task.make(each, job.inputs, job.prompt, how) for each in pipelines]
  )
  if not is_primary():
    return
  preview.unlink(missing_ok=True)
  for path, one in zip(paths, made, strict=True):
    _write(path, one, task, pipelines[0].fps)
  if output.contact_sheet:
    write_image(output.contact_sheet, contact_sheet(made[0]))
    print(output.contact_sheet)


def _preview(path: Path, progress: Progress) -> None:
  """A picture of the first sample's canvas, noise and all."""
  canvas = np.asarray(to_uint8(progress.canvas[:1]))[0]
  if is_primary():
    write_image(path, contact_sheet(canvas))


def _write(path: str, made: np.ndarray, task: Task, fps: float) -> None:
  size = f"{made.shape[-2]}x{made.shape[-3]}"
  if task.picture:
    write_image(path, made)
    print(f"{path}: {size}")
    return
  write_video(path, made, fps)
  print(f"{path}: {len(made)} frames of {size} at {fps:g} frames a second")
