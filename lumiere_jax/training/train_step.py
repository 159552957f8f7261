"""The training step, compiled once for each batch shape."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from lumiere_jax.diffusion.loss import Draws
from lumiere_jax.parallel.backend import compiler_options, platform_of
from lumiere_jax.parallel.flops import count_flops, flops_of
from lumiere_jax.parallel.multihost import replicated
from lumiere_jax.parallel.sharding import constrain_leaves
from lumiere_jax.training.averaging import update_averages
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.optimizer import make_optimizer, next_rate
from lumiere_jax.training.param_overview import by_block
from lumiere_jax.training.state import (
  TrainState,
  apply_gradients,
  restore_added,
)
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.typing import FlatParams

Metrics = dict[str, Any]


def loss_and_gradients(
  experiment: Experiment, task: Task
) -> Callable[..., tuple[jax.Array, FlatParams]]:
  """(trainable, frozen, batch, draws) -> mean loss, gradients of `trainable`.

  A batch is processed in `accumulate` micro-batches; random draws belong to
  clips and do not depend on the split.
  """
  parts = experiment.train.accumulate

  def whole(
    trainable: FlatParams, frozen: FlatParams, batch: Batch, draws: Draws
  ) -> tuple[jax.Array, FlatParams]:
    loss_of = lambda leaves: task.loss({**leaves, **frozen}, batch, draws)[0]
    loss, grads = jax.value_and_grad(loss_of)(trainable)
    return loss, constrain_leaves(grads)

  # Strided, so that clips stay on their devices.
  micro = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  def accumulated(
    trainable: FlatParams, frozen: FlatParams, batch: Batch, draws: Draws
  ) -> tuple[jax.Array, FlatParams]:
    def add(total: Any, part: tuple[Batch, Draws]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, whole(trainable, frozen, *part)), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), trainable))
    slices = jax.tree.map(micro, (dict(batch), draws))
    total, _ = jax.lax.scan(add, zero, slices)
    return jax.tree.map(lambda x: x / parts, total)

  return whole if parts == 1 else accumulated


def make_train_step(
  experiment: Experiment, task: Task
) -> Callable[..., tuple[TrainState, Metrics]]:
  """(state, frozen, batch, key) -> (state, metrics), to be jitted.

  Random keys are folded from the step, so that a resumed run is bit-identical.
  `learning_rate` in the metrics is the one used in this step.
  """
  optimizer = make_optimizer(experiment.train, joint=experiment.joint)
  gradients = loss_and_gradients(experiment, task)

  def train_step(
    state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    step_key = jax.random.fold_in(key, state.step)
    draws = task.draw(batch, step_key)
    loss, grads = gradients(state.trainable, frozen, batch, draws)
    new = apply_gradients(state, grads, optimizer, experiment.train)
    if task.is_image_batch(batch):
      if not experiment.joint:
        raise ValueError("a batch of images, but data.images is not set")
      new = restore_added(state, new)
    new = update_averages(state, new, experiment.train.ema_stds)
    norms = {k: optax.tree.norm(v) for k, v in by_block(grads).items()}
    return new, {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "grad_norms": norms,
      "learning_rate": next_rate(experiment.train, state.opt_state),
      "skipped": new.skipped,
      "skipped_in_a_row": new.skipped_in_a_row,
    }

  return train_step


def jit_train_step(
  experiment: Experiment, task: Task, state: TrainState
) -> jax.stages.Wrapped:
  """`make_train_step`, jitted; the new state keeps the shardings of the old.

  The state may be abstract.
  """
  mesh = _mesh_of(state)
  where = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
    make_train_step(experiment, task),
    donate_argnums=0,
    out_shardings=(where, replicated(mesh)),
    compiler_options=compiler_options(platform_of(mesh)),
  )


def _mesh_of(state: TrainState) -> Mesh:
  mesh = getattr(state.step.sharding, "mesh", None)
  assert isinstance(mesh, Mesh)
  return mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A compiled step.

  Attributes:
    run: (state, frozen, batch, key) -> (state, metrics); donates the state.
    flops: model FLOPs of the step over all devices: forward and backward,
      without rematerialisation.
    temporary_bytes: of each device, besides arguments; None: not reported.
    seconds: to trace, compile and count FLOPs.
  """

  run: Callable[..., tuple[TrainState, Metrics]]
  flops: int
  temporary_bytes: int | None
  seconds: float


class TrainStep:
  """The training step; compiles a program for each new batch shape."""

  def __init__(
    self,
    experiment: Experiment,
    task: Task,
    on_compiled: Callable[[tuple[int, ...], Program, float], None],
  ):
    """`on_compiled` gets the batch shape, its program, and seconds waited."""
    self._experiment, self._task = experiment, task
    self._on_compiled = on_compiled
    self._thread = ThreadPoolExecutor(1, "compile")
    self._ahead: dict[tuple[int, ...], Future[Program]] = {}
    self.programs: dict[tuple[int, ...], Program] = {}

  def prepare(
    self, state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> None:
    """Starts compiling for such a batch in the background."""
    shape, arguments = batch["video"].shape, (state, frozen, batch, key)
    self._ahead[shape] = self._thread.submit(self._compile, *arguments)

  def __call__(
    self, state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    """Takes one step; `state` is donated."""
    shape = batch["video"].shape
    if shape not in self.programs:
      start = time.monotonic()
      if shape not in self._ahead:
        self.prepare(state, frozen, batch, key)
      program = self._ahead.pop(shape).result()
      self.programs[shape] = program
      self._on_compiled(shape, program, time.monotonic() - start)
    return self.programs[shape].run(state, frozen, batch, key)

  def flops(self, batch: Batch) -> int:
    """Model FLOPs of a step on such a batch, once compiled."""
    return self.programs[batch["video"].shape].flops

  def _compile(self, state: TrainState, *rest: Any) -> Program:
    start = time.monotonic()
    with jax.set_mesh(_mesh_of(state)):  # per thread
      step = jit_train_step(self._experiment, self._task, state)
      traced = step.trace(state, *rest)
      lowered = traced.lower()
      # XLA releases the GIL: count FLOPs meanwhile.
      with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(lowered.compile)
        if _countable(self._experiment) == self._experiment:
          flops = flops_of(traced.jaxpr)
        else:
          flops = model_flops(self._experiment, self._task, state, *rest[:2])
        compiled = compiling.result()
    memory = compiled.memory_analysis()
    return Program(
      run=compiled,
      flops=flops,
      temporary_bytes=memory and memory.temp_size_in_bytes,
      seconds=time.monotonic() - start,
    )


def model_flops(
  experiment: Experiment,
  task: Task,
  state: TrainState,
  frozen: FlatParams,
  batch: Batch,
) -> int:
  """FLOPs of the loss and its gradients, counted without rematerialisation."""
  plain = _countable(experiment)
  gradients = loss_and_gradients(
    plain, dataclasses.replace(task, experiment=plain)
  )
  draws = jax.eval_shape(task.draw, batch, jax.random.key(0))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (state.trainable, frozen, dict(batch)),
  )
  return count_flops(gradients, *shapes, draws)


def _countable(experiment: Experiment) -> Experiment:
  """Without rematerialisation, fused kernels and accumulation."""
  execution = dataclasses.replace(
    experiment.execution, remat=(), attention_kernel="xla"
  )
  # Muon's matrix products are not model FLOPs.
  optimizer = {"muon": "adam"}.get(name := experiment.train.optimizer, name)
  train = dataclasses.replace(
    experiment.train, accumulate=1, optimizer=optimizer
  )
  return dataclasses.replace(experiment, execution=execution, train=train)
