"""The programs to plan: a training step or a sampling step."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lumiere_jax.diffusion.samplers import make_sampler
from lumiere_jax.errors import UserError, option
from lumiere_jax.inference.stage_sampler import (
  GuidanceParams,
  Program,
  layout,
  run_chunk,
)
from lumiere_jax.inference.windowing import Windows
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.flops import count_flops
from lumiere_jax.parallel.mesh import BATCH, check_batch
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.stages.denoiser import cast_kernels
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import abstract_state
from lumiere_jax.training.task import Task
from lumiere_jax.training.train_step import jit_train_step, model_flops
from lumiere_jax.typing import Cond

JOBS = ("train", "sample")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedJob:
  """A program to compile.

  Attributes:
    function: jitted.
    arguments: abstract, with shardings.
    model_flops: of one call over all devices, without rematerialisation.
    videos: how many one call processes.
    about: sizes to report.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  model_flops: int
  videos: int
  about: dict[str, Any]

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    """Traces and lowers it for the mesh of its arguments."""
    with jax.set_mesh(mesh):
      return self.function.lower(*self.arguments)


def train_job(experiment: Experiment, mesh: Mesh) -> PlannedJob:
  """A training step on clips of the first shape in the data config."""
  config, spec = experiment.train, experiment.data.specs[0]
  check_batch(config.batch_size, config.accumulate, mesh)
  size, length = config.batch_size, experiment.text.max_length
  width = experiment.model.text_dim
  task = Task(
    experiment=experiment,
    null_text=jnp.zeros((length, width)),
    null_mask=jnp.ones(length, bool),
  )
  state, frozen = abstract_state(experiment, task, mesh)
  clip = (size, spec.num_frames, *spec.resolution)
  shapes = {
    "video": ((*clip, 3), jnp.uint8),
    "text": ((size, length, width), jnp.float32),
    "text_mask": ((size, length), bool),
  }
  if experiment.model.cond_channels:
    shapes["mask"] = ((*clip, 1), jnp.uint8)
  batch = {
    name: jax.ShapeDtypeStruct(*leaf, sharding=multihost.by_sample(mesh))
    for name, leaf in shapes.items()
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = multihost.abstract(key, multihost.replicated(mesh))
  return PlannedJob(
    function=jit_train_step(experiment, task, state),
    arguments=(state, frozen, batch, key),
    model_flops=model_flops(experiment, task, state, frozen, batch),
    videos=size,
    about={"clip": clip[1:], "parameters": _count(state.trainable, frozen)},
  )


def sample_job(
  experiment: Experiment,
  mesh: Mesh,
  *,
  num_frames: int = 80,
  windows: Windows | None = None,
) -> PlannedJob:
  """One sampling step with guidance: the network runs twice per video.

  With windows, one video whose windows are sharded over the data axis; without,
  one video per device of the batch axes.

  Args:
    experiment: the stage.
    mesh: of the devices.
    num_frames: of a video.
    windows: temporal windows; None: the whole video at once.
  """
  config = experiment.sampling
  devices = mesh.shape["data"] if windows else 1
  program = Program(
    config=config,
    rule=make_sampler("ddim"),
    windows=windows,
    num_frames=num_frames,
    devices=devices,
  )
  division = program.division
  frames = len(division.frames) if division else num_frames
  if not windows:
    config.model.check_video(num_frames, *config.video.resolution)
  videos = 1 if windows else math.prod(mesh.shape[axis] for axis in BATCH)
  inputs_of = lambda frames: _sample_inputs(experiment, videos, frames)
  inputs = inputs_of(frames)
  where = layout(inputs, mesh, divided=division is not None)
  params = cast_kernels(abstract_params(config.model), config.execution.dtype)
  countable = dataclasses.replace(config.execution, attention_kernel="xla")
  config = dataclasses.replace(config, execution=countable)
  one_device = dataclasses.replace(program, devices=1, config=config)
  return PlannedJob(
    function=_jit_chunk(program),
    arguments=(
      multihost.abstract(params, shardings(params, mesh)),
      *multihost.abstract(inputs, where),
    ),
    model_flops=count_flops(
      _jit_chunk(one_device), params, *inputs_of(num_frames)
    ),
    videos=videos,
    about={
      "clip": (num_frames, *config.video.resolution),
      "parameters": _count(params),
      "windows": len(program.starts) if windows else 1,
      "hops": division.hops if division else (),
    },
  )


def _jit_chunk(program: Program) -> Callable[..., Any]:
  return jax.jit(functools.partial(run_chunk, program=program))


def _sample_inputs(
  experiment: Experiment, videos: int, frames: int
) -> tuple[Any, ...]:
  """Abstract arguments of `run_chunk` after the weights, for one step."""
  model, video = experiment.model, experiment.sampling.video
  canvas = (videos, frames, *video.resolution)
  extra = model.in_channels - 3 + model.cond_channels
  length, width = experiment.text.max_length, model.text_dim
  rule = make_sampler("ddim")

  def make() -> tuple[Any, ...]:
    text = Cond(
      text=jnp.zeros((videos, length, width)),
      text_mask=jnp.ones((videos, length), bool),
    )
    cond = text
    if extra:
      cond = cond.replace(frames=jnp.zeros((*canvas, extra)))
    if model.noise_conditioned:
      cond = cond.replace(noise_level=jnp.zeros(videos))
    keys = jax.vmap(jax.random.key)(jnp.arange(videos))
    return (
      rule.init(jnp.zeros((*canvas, 3))),
      jnp.zeros(2),
      jnp.int32(0),
      keys,
      cond,
      text,
      jax.tree.map(jnp.float32, GuidanceParams()),
    )

  return jax.eval_shape(make)


def _count(*trees: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(trees))


def make_job(
  name: str, experiment: Experiment, mesh: Mesh, num_frames: int
) -> PlannedJob:
  """A job by name; super-resolution samples in windows.

  Args:
    name: one of `JOBS`.
    experiment: the stage.
    mesh: of the devices.
    num_frames: of a sampled video; 0: 80 (1 for image stages).
  """
  if name == "train":
    return train_job(experiment, mesh)
  trained = experiment.data.num_frames
  frames = num_frames or (80 if trained > 1 else 1)
  if frames < trained:
    raise UserError(
      option("num_frames", frames),
      f"is less than the {trained} that the stage was trained on",
      f"use at least {trained}",
    )
  upscaled = experiment.upscale > 1 and experiment.model.temporal
  windows = Windows(size=trained) if upscaled and frames > trained else None
  return sample_job(experiment, mesh, num_frames=frames, windows=windows)
