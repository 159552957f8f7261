"""Batch sampling: requests, prompt lines, file names and writing."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path
import sys
import typing
from typing import Any

import numpy as np

from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.cascade import Progress, SamplingInputs
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.prompt_files import PromptLine, check_options
from lumiere_jax.inference.sample_options import require_prompt, with_settings
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.styles import parse_alphas, read_style
from lumiere_jax.inference.tasks import TASKS, Task, make_task
from lumiere_jax.media.images import (
  check_image_output,
  contact_sheet,
  side_by_side,
  write_image,
)
from lumiere_jax.media.video_writer import check_output, write_video
from lumiere_jax.options import bare_type, check_values, documented, setting
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.parallel.multihost import is_primary
from lumiere_jax.stages.conditioning import to_uint8
from lumiere_jax.storage.atomic import check_writable
from lumiere_jax.storage.files import check_unused, expand_user, slug, unused

_SEEDS = 2**32


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """Where and how results are written."""

  out: str = setting(
    "",
    "File: .mp4, .webm, .gif or .npy, or FOLDER/ of png files; for a picture "
    ".png or .jpg. For several videos a folder, or a file whose name they "
    "share, with numbers behind. Default: a new name made from task, prompt "
    "and seed.",
  )
  format: str = setting(
    "", "File ending of several videos in a folder. Default: mp4 or png."
  )
  overwrite: bool = setting(False, "Replace files that exist already.")
  contact_sheet: str = setting(
    "", "Also write a picture of frames side by side: .png or .jpg."
  )
  preview_every: int = setting(
    0,
    f"Steps between preview pictures beside {option('out')}; 0: none.",
    least=0,
  )


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
  """Which weights to load, and the devices to load them on."""

  models: tuple[str, ...] = setting(
    (),
    "Bundle, workdir of a run, or name of a Hugging Face repository. Give it "
    "again to add stages that are missing: base, conditional, "
    "super-resolution, text encoder.",
    name="model",
  )
  adapters: tuple[str, ...] = setting(
    (),
    "LoRA adapter: one trained here (file or workdir), or one of diffusers or "
    "PEFT. STAGE=PATH names its stage.",
    name="adapter",
  )
  adapter_scale: float = setting(1.0, "Scale of the adapters; 1 is as trained.")
  mesh: MeshConfig | None = setting(
    None,
    "DATA,FSDP,SPACE: devices to sample on, one of them -1 for the rest. "
    "Windows are distributed over DATA, weights sharded over FSDP, rows of "
    "pixels over SPACE. Default: one device.",
  )

  def check(self) -> None:
    """Raises a UserError if no model is named."""
    if not self.models:
      raise UserError(
        option("model"),
        "is missing",
        "give a bundle, or the workdir of a training run",
      )

  def load(self) -> Pipeline:
    """Loads them; see `Pipeline.from_pretrained`."""
    return Pipeline.from_pretrained(
      *self.models,
      adapters=self.adapters,
      adapter_scale=self.adapter_scale,
      mesh=self.mesh,
    )


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest(ModelSource):
  """Videos or pictures to make.

  Attributes:
    lines: prompts, with options of their own.
    inputs: files and numbers for the task, by name.
    output: where results go.
    settings: sampling settings.
  """

  task: str = setting(
    "text_to_video", f"One of {', '.join(TASKS)}.", choices=TASKS
  )
  lines: tuple[PromptLine, ...]
  negative_prompt: str = setting(
    "", "What to steer away from.", hint="what to steer away from"
  )
  seed: int = setting(0, "Random seed; the same seed gives the same video.")
  num_samples: int = setting(
    1, f"Videos of each prompt, with seeds from {option('seed')} on.", least=1
  )
  batch_size: int = setting(
    1, "How many of these are sampled together.", least=1
  )
  styles: tuple[str, ...] = setting(
    (),
    "Style to blend into the spatial layers, with any task: bundle or workdir "
    "of a fine-tuned image model (configs/style.py), or an adapter. Give it "
    "again for super-resolution.",
    name="style",
  )
  alphas: tuple[float, ...] = setting(
    (1.0,),
    "How much of the style, 0 to 1 (1.5 exaggerates). Several, such as "
    "0,0.5,1, are shown side by side.",
    name="alpha",
    parse=functools.partial(parse_alphas, name=option("alpha")),
  )
  inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  output: Output = dataclasses.field(default_factory=Output)
  settings: Settings = dataclasses.field(default_factory=Settings)

  def check(self) -> None:
    """Raises a UserError for a value that cannot be used."""
    super().check()
    check_values(self)
    check_values(self.output)
    if self.task == "stylize" and not self.styles:
      raise UserError(
        option("style"),
        f"is missing: {option('task', 'stylize')} needs one",
        f"train one by {option('config', 'configs/style.py')}",
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoJob:
  """Videos of one prompt that are sampled together.

  Attributes:
    prompt: what to show.
    task: with its inputs.
    how: seeds, negative prompt and settings.
    paths: output files, one for each seed.
  """

  prompt: str
  task: Task
  how: SampleOptions
  paths: tuple[str, ...]


def run_batch(request: SampleRequest) -> None:
  """Samples and writes all videos.

  What can be checked before sampling is: files, also before weights are loaded.
  An interruption keeps what is written and exits with code 130.
  """
  request.check()
  output, jobs = request.output, list(_jobs(request))
  for job in jobs:
    job.task.check()
    if job.task.prompted:
      require_prompt(job.prompt)
  _check_output(output, jobs)
  for style in request.styles:
    read_style(style)
  pipelines = _in_styles(request.load(), request)
  for job in jobs:
    job.task.check_settings(pipelines[0], job.how)
  done, total = 0, sum(len(job.paths) for job in jobs)
  try:
    for job in jobs:
      with _preview(output, job) as how:
        videos = side_by_side(
          [job.task.run(pipeline, job.prompt, how) for pipeline in pipelines]
        )
      if is_primary():
        _write(output, job, videos, pipelines[0].fps)
      done += len(job.paths)
  except KeyboardInterrupt:
    print(f"\nstopped: {done} of {total} are made, and kept", file=sys.stderr)
    sys.exit(130)


def show_grid(request: SampleRequest) -> None:
  """Prints as JSON the log-SNRs that each stage's steps start from.

  -Infinity is pure noise. Nothing is sampled.
  """
  request.check()
  task = make_task(request.task, request.inputs)
  pipeline = Pipeline.from_pretrained(*request.models)
  settings = request.settings
  if task.picture:
    settings = dataclasses.replace(settings, num_frames=1)
  inputs = SamplingInputs(strength=getattr(task, "strength", 1.0))
  plans = pipeline.plan(settings, inputs)
  if request.task == "super_resolve":
    del plans["base"]
  grids = {
    name: [round(float(x), 4) for x in plan.log_snrs[:-1]]
    for name, plan in plans.items()
  }
  print(json.dumps(grids))


def _check_output(output: Output, jobs: list[VideoJob]) -> None:
  """Raises a UserError where a result could not be written."""
  paths = [path for job in jobs for path in job.paths]
  is_picture = any(job.task.picture for job in jobs)
  if is_primary():
    check_writable(*paths, *filter(None, [output.contact_sheet]))
  for path in paths:
    (check_image_output if is_picture else check_output)(path)
  if sheet := output.contact_sheet:
    if is_picture or len(paths) > 1:
      made = "pictures are" if is_picture else f"{len(paths)} videos are"
      raise UserError(
        option("contact_sheet", sheet),
        f"shows the frames of one video, and {made} made",
        "leave it out, or make one video",
      )
    check_image_output(sheet)
    paths.append(sheet)
  for path in paths:
    check_unused(path, output.overwrite)


def _jobs(request: SampleRequest) -> Iterator[VideoJob]:
  kinds = {
    name: bare_type(kind)
    for cls in (*TASKS.values(), Settings)
    for name, kind in typing.get_type_hints(cls).items()
    if typing.get_origin(kind) is not typing.ClassVar
  } | {"negative_prompt": str}
  check_options(request.lines, kinds)
  path_of = _paths(request)
  for line in request.lines:
    own = {
      name: _parse(line.where, name, text, kinds[name])
      for name, text in line.options.items()
    }
    negative_prompt = own.pop("negative_prompt", request.negative_prompt)
    changed = {k: own.pop(k) for k in own.keys() & vars(request.settings)}
    task = make_task(request.task, {**request.inputs, **own})
    settings = dataclasses.replace(request.settings, **changed)
    first = request.seed if line.seed is None else line.seed
    all_seeds = range(first, first + request.num_samples)
    if not 0 <= first <= all_seeds[-1] < _SEEDS:
      more = f"and the {request.num_samples - 1} after it are not all in"
      raise UserError(
        f"{line.where} {option('seed', first)}".strip(),
        f"{more if request.num_samples > 1 else 'is not in'} [0, 2^32)",
        "choose another",
      )
    for i in range(0, len(all_seeds), request.batch_size):
      seeds = tuple(all_seeds[i : i + request.batch_size])
      yield VideoJob(
        prompt=line.prompt,
        task=task,
        how=SampleOptions(
          seed=seeds, negative_prompt=negative_prompt, settings=settings
        ),
        paths=tuple(path_of(line.prompt, seed) for seed in seeds),
      )


def _parse(where: str, name: str, text: str, kind: Any) -> Any:
  """An option of a prompt file as its type."""
  if kind not in (bool, int, float, str):
    raise UserError(
      where, f"{name} cannot differ by line", f"give {option(name)}"
    )
  read = _BOOLS.__getitem__ if kind is bool else kind
  if kind is str and name != "negative_prompt":
    text = expand_user(text)
  try:
    return read(text.lower() if kind is bool else text)
  except (ValueError, KeyError) as error:
    raise UserError(
      where,
      f"{name}={text!r} is not of type {kind.__name__}",
      "correct the line",
    ) from error


_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def _paths(request: SampleRequest) -> Callable[[str, int], str]:
  """(prompt, seed) -> path of that video; none is returned twice."""
  output = request.output
  picture = TASKS[request.task].picture
  ending = "." + (output.format or ("png" if picture else "mp4"))
  several = len(request.lines) * request.num_samples > 1
  count, taken = itertools.count(1), set[str]()

  def path(prompt: str, seed: int) -> str:
    number = next(count)
    name = "-".join(filter(None, (request.task, slug(prompt), f"seed{seed}")))
    if not output.out:
      taken.add(new := unused(name + ending, taken))
      return new
    if not several:
      return output.out
    out = Path(output.out)
    if out.suffix and not output.out.endswith("/"):
      return os.fspath(out.with_name(f"{out.stem}-{number}{out.suffix}"))
    return os.fspath(out / f"{number:04d}-{slug(prompt)}-seed{seed}{ending}")

  return path


def _in_styles(pipeline: Pipeline, request: SampleRequest) -> list[Pipeline]:
  """A pipeline for each alpha; the given one if there are no styles."""
  pipelines = []
  for alpha in request.alphas if request.styles else (1.0,):
    styled = pipeline
    for style in request.styles:
      styled = styled.styled(style, alpha)
    pipelines.append(styled)
  return pipelines


@contextlib.contextmanager
def _preview(output: Output, job: VideoJob) -> Iterator[SampleOptions]:
  """The options of a job, with a preview picture while it is sampled."""
  if not output.preview_every:
    yield job.how
    return
  first = Path(job.paths[0])
  path = Path(unused(first.with_name(f"{first.stem}-preview.png")))

  def write(progress: Progress) -> None:
    """Writes the first sample's frames as they are, with their noise."""
    canvas = np.asarray(to_uint8(progress.canvas[:1]))[0]
    if is_primary():
      write_image(path, contact_sheet(canvas))
      written.callback(path.unlink, missing_ok=True)

  how = with_settings(job.how, chunk=output.preview_every)
  with contextlib.ExitStack() as written:
    yield how | {"on_progress": write}


def _write(
  output: Output, job: VideoJob, videos: np.ndarray, fps: float
) -> None:
  for wanted, pixels in zip(job.paths, videos, strict=True):
    # Another program may have written there while this one sampled.
    path = wanted if output.overwrite else unused(wanted)
    size = f"{pixels.shape[-2]}x{pixels.shape[-3]}"
    if job.task.picture:
      write_image(path, pixels)
      print(f"{path}: {size}")
    else:
      write_video(path, pixels, fps)
      print(
        f"{path}: {len(pixels)} frames of {size} at {fps:g} frames a second"
      )
  if output.contact_sheet:
    path = output.contact_sheet
    path = path if output.overwrite else unused(path)
    write_image(path, contact_sheet(videos[0]))
    print(path)
