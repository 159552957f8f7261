"""The training step compiled once for each shape of batch."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import time
from typing import Any

import jax

from lumiere_jax.parallel.flops import count_flops, flops_of
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.step import (
  Metrics,
  jit_train_step,
  loss_and_gradients,
)
from lumiere_jax.training.tasks import Batch, Task
from lumiere_jax.typing import FlatParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A compiled step.

  Attributes:
    run: (state, frozen, batch, key) -> (state, metrics); the state given is
      used up.
    flops: model FLOPs of the step over all devices: forward and backward as
      they need to be, without what is computed again.
    temporary_bytes: memory on each device while it runs, besides its
      arguments; None where the compiler does not say.
    seconds: it took to trace, compile and count.
  """

  run: Callable[..., tuple[TrainState, Metrics]]
  flops: int
  temporary_bytes: int | None
  seconds: float


class TrainStep:
  """Programs by the shape of the batch; another shape compiles another."""

  def __init__(
    self,
    experiment: Experiment,
    task: Task,
    announce: Callable[[tuple[int, ...], Program, float], None],
  ):
    """Takes what to do with a shape, its program and the seconds waited."""
    self._experiment, self._task = experiment, task
    self._announce = announce
    self._thread = ThreadPoolExecutor(1, "compile")
    self._ahead: dict[tuple[int, ...], Future[Program]] = {}
    self.programs: dict[tuple[int, ...], Program] = {}

  def prepare(
    self, state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> None:
    """Begins to compile for such a batch, while other work can be done."""
    shape, arguments = batch["video"].shape, (state, frozen, batch, key)
    self._ahead[shape] = self._thread.submit(self._compile, *arguments)

  def __call__(
    self, state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    """Takes a step; `state` must not be used again."""
    shape = batch["video"].shape
    if shape not in self.programs:
      start = time.monotonic()
      if shape not in self._ahead:
        self.prepare(state, frozen, batch, key)
      program = self._ahead.pop(shape).result()
      self.programs[shape] = program
      self._announce(shape, program, time.monotonic() - start)
    return self.programs[shape].run(state, frozen, batch, key)

  def flops(self, batch: Batch) -> int:
    """Model FLOPs of a step that has been taken."""
    return self.programs[batch["video"].shape].flops

  def _compile(self, state: TrainState, *rest: Any) -> Program:
    start = time.monotonic()
    with jax.set_mesh(state.step.sharding.mesh):  # of this thread
      step = jit_train_step(self._experiment, self._task, state)
      traced = step.trace(state, *rest)
      lowered = traced.lower()
      # XLA lets Python go on meanwhile.
      with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(lowered.compile)
        if _plain(self._experiment) == self._experiment:
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
  plain = _plain(experiment)
  gradients = loss_and_gradients(
    plain, dataclasses.replace(task, experiment=plain)
  )
  draws = jax.eval_shape(task.draw, batch, jax.random.key(0))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (state.trainable, frozen, dict(batch)),
  )
  return count_flops(gradients, *shapes, draws)


def _plain(experiment: Experiment) -> Experiment:
  """The experiment as its FLOPs are counted: nothing computed again."""
  model = dataclasses.replace(
    experiment.model, remat=(), attention_kernel="xla"
  )
  # Products of the optimizer are not the model's.
  optimizer = {"muon": "adam"}.get(name := experiment.train.optimizer, name)
  train = dataclasses.replace(
    experiment.train, accumulate=1, optimizer=optimizer
  )
  return dataclasses.replace(experiment, model=model, train=train)
