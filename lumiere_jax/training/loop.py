"""The one training loop, for every stage."""

from collections.abc import Callable
import contextlib
import dataclasses
from pathlib import Path
import sys
import time

import jax

from lumiere_jax.models.attention import check_runs
from lumiere_jax.parallel.agree import is_first
from lumiere_jax.parallel.backend import platform_of
from lumiere_jax.parallel.mesh import check_batch, make_mesh
from lumiere_jax.training.compatibility import (
  RUNS,
  check_resumed,
  check_same_encoder,
  finished_at,
  last_run,
  recorded_shift,
)
from lumiere_jax.training.compiled import TrainStep
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.interrupt import interruptible
from lumiere_jax.training.journal import Journal
from lumiere_jax.training.logs import JsonLines
from lumiere_jax.training.noise_report import draw_noise
from lumiere_jax.training.profile import ProfileWindow
from lumiere_jax.training.run import Run
from lumiere_jax.training.saving import Saver
from lumiere_jax.training.start import (
  check_init_from,
  settled,
  with_max_distance,
)
from lumiere_jax.training.tables import (
  memory_by_group,
  memory_table,
  parameter_table,
)
from lumiere_jax.training.workdir import opened_workdir, telling_what_failed


def train(experiment: Experiment, workdir: Path) -> None:
  """Trains a stage up to `train.steps`, going on from what `workdir` holds.

  docs/training.md says what it leaves there.

  Raises:
    UserError: a config value, a file or a checkpoint cannot be used, or the
      workdir cannot be written (any more).
  """
  resuming = experiment.resume and (workdir / "checkpoints").is_dir()
  check_init_from(experiment, resuming=resuming)
  before = last_run(workdir) if resuming else {}
  experiment = settled(recorded_shift(experiment, before))
  experiment = with_max_distance(experiment, before if resuming else None)
  check_resumed(experiment, before)
  with (
    telling_what_failed(workdir),
    opened_workdir(workdir, resume=experiment.resume),
    interruptible() as stopped,
  ):
    if resuming and (step := finished_at(experiment, workdir)):
      say_finished(experiment, step)
      return
    mesh = make_mesh(experiment.mesh)
    check_runs(experiment.model.attention_kernel, platform_of(mesh))
    config = experiment.train
    check_batch(config.batch_size, config.accumulate, mesh)
    with contextlib.closing(Run.open(experiment, workdir, mesh)) as run:
      check_same_encoder(run.text.identity, before)
      announce(run)
      journal = Journal(experiment, workdir, run.step, run.pace)
      with contextlib.closing(journal), jax.set_mesh(mesh):
        loop(run, journal, stopped)


def loop(run: Run, journal: Journal, stopped: Callable[[int], bool]) -> None:
  """Evaluate - save - next batch - step - log, until done or told to stop."""
  config, preview = run.experiment.train, run.experiment.preview
  due = lambda every, step: bool(every) and step % every == 0
  start = run.step
  train_step = TrainStep(run.experiment, run.task, journal.compiled)
  saver = Saver(run, journal)
  profile = ProfileWindow(config, run.workdir)
  key = jax.random.key(run.experiment.seed)
  metrics = None
  with contextlib.closing(run.batches()) as batches:
    ahead = []
    journal.start_clock()
    for step in range(start, config.steps):
      if stopped(step):
        break
      if step == start:
        with journal.apart(metrics):
          ahead.append(next(batches))
          train_step.prepare(run.state, run.frozen, ahead[0], key)
          journal.say("compiling the training step")
      if step == 0 or due(config.eval_every, step):
        with journal.apart(metrics):
          saver.evaluate()
      if step > start and due(preview.every, step):
        with journal.apart(metrics):
          saver.preview()
      if step > start and saver.due(step):
        with journal.apart(metrics):
          saver.save()
      with journal.waiting():
        batch = ahead.pop() if ahead else next(batches)
      with profile.around(step):
        run.state, metrics = train_step(run.state, run.frozen, batch, key)
      journal.took_step(step + 1, metrics, train_step.flops(batch))
  if run.step == config.steps:
    saver.evaluate()
    if preview.every and start < config.steps:
      saver.preview()
  saver.save()


def say_finished(experiment: Experiment, step: int) -> None:
  """Says that there is nothing left to do."""
  if is_first():
    print(
      f"{experiment.stage}: finished at step {step}, nothing to do; to train "
      f"on, set config.train.steps above {step}",
      file=sys.stderr,
    )


def announce(run: Run) -> None:
  """Says what will train, notes the start, draws the noise levels."""
  if not is_first():
    return
  draw_noise(run.experiment, run.workdir / "noise.svg")
  count = lambda flat: sum(leaf.size for leaf in flat.values())
  trained, frozen = count(run.state.trainable), count(run.frozen)
  memory = memory_by_group(run.state, run.frozen)
  JsonLines(run.workdir / RUNS).append(
    {
      "start_step": run.step,
      "devices": jax.device_count(),
      "processes": jax.process_count(),
      "mesh": dict(run.mesh.shape),
      "platform": jax.devices()[0].device_kind,
      "jax": jax.__version__,
      "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "parameters": {"trainable": trained, "frozen": frozen},
      "text_encoder": run.text.identity,
      "memory": memory,
      "config": dataclasses.asdict(run.experiment),
    }
  )
  print(
    parameter_table(run.state.trainable, run.frozen),
    memory_table(memory),
    f"{run.experiment.stage}: noise levels drawn are shifted by "
    f"{run.experiment.diffusion.shift:g} (noise.svg)",
    f"{run.experiment.stage}: {len(run.sources[0])} clips, {trained:,} "
    f"parameters train, {frozen:,} are frozen; steps {run.step} to "
    f"{run.experiment.train.steps}",
    sep="\n",
    file=sys.stderr,
  )
