"""The programs to plan: a training step or a sampling step."""

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
  Program,
  layout,
  run_chunk,
  traced,
)
from lumiere_jax.inference.windowing import Windows
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.flops import count_flops
from lumiere_jax.parallel.mesh import BATCH, check_batch
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.stages.config import SamplingConfig
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

  function: Any
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
  batch: dict[str, Any] = {
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

  With temporal windows, one video whose windows are sharded over the data axis;
  without, one video per device of the batch axes.
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
  videos = 1 if windows else math.prod(mesh.shape[axis] for axis in BATCH)
  inputs_of = lambda frames: _sample_inputs(experiment, videos, frames)
  inputs = inputs_of(frames)
  where = layout(inputs, mesh, divided=division is not None)
  params = cast_kernels(abstract_params(config.model), config.execution.dtype)
  countable = dataclasses.replace(config.execution, attention_kernel="xla")
  config = dataclasses.replace(config, execution=countable)
  one_device = dataclasses.replace(program, devices=1, config=config)
  jit = lambda program: jax.jit(functools.partial(run_chunk, program=program))
  return PlannedJob(
    function=jit(program),
    arguments=(
      multihost.abstract(params, shardings(params, mesh)),
      *multihost.abstract(inputs, where),
    ),
    model_flops=count_flops(jit(one_device), params, *inputs_of(num_frames)),
    videos=videos,
    about={
      "clip": (num_frames, *config.video.resolution),
      "parameters": _count(params),
      "windows": len(program.starts()),
      "hops": division.hops if division else (),
    },
  )


def _sample_inputs(
  experiment: Experiment, videos: int, frames: int
) -> tuple[Any, ...]:
  """Abstract arguments of `run_chunk` after the weights, for one step."""
  model, video = experiment.model, experiment.sampling.video
  canvas = (videos, frames, *video.resolution)
  extra = model.in_channels - 3 + model.cond_channels
  length, width = experiment.text.max_length, model.text_dim

  def make() -> tuple[Any, ...]:
    text = Cond(
      text=jnp.zeros((videos, length, width)),
      text_mask=jnp.ones((videos, length), bool),
    )
    cond = dataclasses.replace(
      text,
      frames=jnp.zeros((*canvas, extra)) if extra else None,
      noise_level=jnp.zeros(videos) if model.noise_conditioned else None,
    )
    return (
      make_sampler("ddim").init(jnp.zeros((*canvas, 3))),
      jnp.zeros(2),
      jnp.int32(0),
      jax.vmap(jax.random.key)(jnp.arange(videos)),
      cond,
      text,
      traced(SamplingConfig()),
    )

  return jax.eval_shape(make)


def _count(*trees: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(trees))


def make_job(
  name: str, experiment: Experiment, mesh: Mesh, num_frames: int
) -> PlannedJob:
  """A job of `JOBS`; super-resolution samples in windows.

  `num_frames` is that of a sampled video; 0: 80 (1 for image stages).
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
