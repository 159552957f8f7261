"""Background compilation of the training step."""

import contextlib
import types

import jax
import jax.numpy as jnp
import pytest

from lumiere_jax.models.params import split
from lumiere_jax.parallel.mesh import make_mesh
from lumiere_jax.parallel.multihost import replicated
from lumiere_jax.training import loop, train_step
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import init_state
from lumiere_jax.training.train_step import TrainStep, model_flops
from tests.conftest import replace
from tests.training.conftest import BASE, T2I, make_batch, make_task


def start(experiment):
  """A list of compiled programs, the step, and its arguments."""
  compiled = []
  task, mesh = make_task(experiment), make_mesh(experiment.mesh)
  step = TrainStep(experiment, task, lambda *args: compiled.append(args))
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  trainable, frozen = split(params, experiment.train.trainable)
  state = init_state(trainable, make_optimizer(experiment.train))
  batch, key = make_batch(experiment, 2), jax.random.key(1)
  args = jax.device_put((state, frozen, batch, key), replicated(mesh))
  step.prepare(*args)
  return compiled, step, args


def test_a_step_is_compiled_once_in_the_background(monkeypatch):
  """Only the time spent waiting for it is reported as such."""
  calls, compile_step = [], TrainStep._compile
  monkeypatch.setattr(
    TrainStep,
    "_compile",
    lambda self, *args: calls.append(1) or compile_step(self, *args),
  )
  compiled, step, (state, *rest) = start(T2I)
  shape = rest[1]["video"].shape
  step._ahead[shape].result()
  state, _ = step(state, *rest)
  step(state, *rest)
  [(compiled_shape, program, waited)] = compiled
  assert compiled_shape == shape
  assert waited < 0.1 * program.seconds
  assert len(calls) == 1


def test_the_step_raises_errors_of_background_compilation(monkeypatch):
  def fail(*args):
    raise FloatingPointError("as tracing may")

  monkeypatch.setattr(train_step, "jit_train_step", fail)
  _, step, args = start(T2I)
  with pytest.raises(FloatingPointError, match="as tracing may"):
    step(*args)


@pytest.mark.parametrize(
  "experiment",
  [
    BASE,
    replace(T2I, train={"accumulate": 2}),
    replace(T2I, train={"optimizer": "muon"}),
  ],
  ids=["whole", "parts", "muon"],
)
def test_flops_are_those_of_loss_and_gradients(experiment, monkeypatch):
  nothing = types.SimpleNamespace(memory_analysis=lambda: None)
  monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: nothing)
  _, step, (*args, _) = start(experiment)
  program = step._ahead[args[2]["video"].shape].result()
  wanted = model_flops(experiment, make_task(experiment), *args)
  assert program.flops == wanted > 0


def test_a_run_stopped_before_its_first_step_compiles_nothing(
  monkeypatch, tmp_path
):
  stopped = lambda: contextlib.nullcontext(lambda step: True)
  monkeypatch.setattr(loop, "handle_preemption", stopped)
  monkeypatch.setattr(TrainStep, "prepare", lambda *args: pytest.fail())
  loop.train(T2I, tmp_path)
  assert (tmp_path / "checkpoints" / "0").is_dir()
