"""The one training loop, for every stage."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
from pathlib import Path
import sys
import time
from typing import Any

import jax

from lumiere_jax.models.attention import check_platform
from lumiere_jax.parallel.backend import platform_of
from lumiere_jax.parallel.mesh import check_batch, make_mesh
from lumiere_jax.parallel.multihost import broadcast_flag, is_primary
from lumiere_jax.training.compatibility import (
  RUNS,
  check_resumed,
  check_same_encoder,
  finished_at,
  last_run,
  recorded_shift,
)
from lumiere_jax.training.config import Experiment, TrainConfig
from lumiere_jax.training.evaluation import HeldOut
from lumiere_jax.training.initialization import (
  check_init_from,
  settled,
  with_max_distance,
)
from lumiere_jax.training.metric_logger import JsonLines, MetricLogger
from lumiere_jax.training.noise_report import draw_noise
from lumiere_jax.training.param_overview import (
  memory_by_group,
  memory_table,
  parameter_table,
)
from lumiere_jax.training.previews import Previews
from lumiere_jax.training.run import Run
from lumiere_jax.training.train_step import TrainStep
from lumiere_jax.training.workdir import (
  interruptible,
  opened_workdir,
  telling_what_failed,
)


class ProfileWindow:
  """Profiles the steps that the config names into `workdir/profile`."""

  def __init__(self, config: TrainConfig, workdir: Path):
    self._steps = range(
      config.profile_from, config.profile_from + config.profile_steps
    )
    self._folder = workdir / "profile"
    self._on = False

  @contextlib.contextmanager
  def around(self, step: int) -> Iterator[None]:
    """Wraps a step; a run that starts within the window profiles its rest."""
    if step in self._steps and not self._on:
      jax.profiler.start_trace(str(self._folder))
      self._on = True
    yield
    if self._on and step + 1 not in self._steps:
      jax.effects_barrier()
      jax.profiler.stop_trace()
      self._on = False


BEST = "best"
"""The bundle of the lowest held-out loss, beside `bundle`, the newest one."""


class Saver:
  """Measures, shows and saves the state of a run when the loop says so."""

  def __init__(self, run: Run, journal: MetricLogger):
    self._run, self._journal = run, journal
    self._config = run.experiment.train
    self._exporter = run.exporter()
    self._saved_at = time.monotonic()
    # Losses at other noise levels cannot be compared with those to come.
    levels = run.task.evaluation_log_snrs
    self._records = {
      r["step"]: r["loss"]
      for r in journal.held_out()
      if r.get("log_snr") == levels
    }

  @functools.cached_property
  def _held_out(self) -> HeldOut:
    return self._run.held_out()

  @functools.cached_property
  def _previews(self) -> Previews:
    return self._run.previews()

  def evaluate(self) -> None:
    """Takes and logs the held-out loss, once for each step."""
    step = self._run.step
    if not self._config.eval_clips or step in self._records:
      return
    record: Mapping[str, Any] = self._held_out(
      self._run.state, self._run.frozen, final=step == self._config.steps
    )
    self._journal.evaluated(record)
    self._records[step] = record["loss"]

  def preview(self) -> None:
    """Samples clips to look at."""
    clips = self._previews(self._run.state, self._run.frozen)
    self._journal.previewed(self._run.step, clips)

  def due(self, step: int) -> bool:
    """Whether it is time to save: steps, minutes, or the best state yet."""
    return (
      step % self._config.save_every == 0
      or self._is_best(step)
      or self._is_long_ago(step)
    )

  def _is_long_ago(self, step: int) -> bool:
    """By the first process's clock, which is asked where a line is logged."""
    if not self._config.save_minutes or step % self._config.log_every:
      return False
    minutes = (time.monotonic() - self._saved_at) / 60
    return broadcast_flag(minutes >= self._config.save_minutes)

  def save(self) -> None:
    """A checkpoint, the bundle of averaged weights, and the best one."""
    run, step = self._run, self._run.step
    run.checkpoints.save(run.state, run.frozen_name, self._records.get(step))
    self._saved_at = time.monotonic()
    self._exporter.save(run.state)
    if self._is_best(step):
      self._exporter.save(run.state, BEST)

  def _is_best(self, step: int) -> bool:
    """Whether this step was measured, and none before it was better."""
    if not self._config.keep_best or not step or step not in self._records:
      return False
    earlier = [x for s, x in self._records.items() if 0 < s < step]
    return all(self._records[step] < loss for loss in earlier)


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
    check_platform(experiment.model.attention_kernel, platform_of(mesh))
    config = experiment.train
    check_batch(config.batch_size, config.accumulate, mesh)
    with contextlib.closing(Run.open(experiment, workdir, mesh)) as run:
      check_same_encoder(run.text.identity, before)
      announce(run)
      journal = MetricLogger(experiment, workdir, run.step, run.pace)
      with contextlib.closing(journal), jax.set_mesh(mesh):
        loop(run, journal, stopped)


def loop(
  run: Run, journal: MetricLogger, stopped: Callable[[int], bool]
) -> None:
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
  if is_primary():
    print(
      f"{experiment.stage}: finished at step {step}, nothing to do; to train "
      f"on, set config.train.steps above {step}",
      file=sys.stderr,
    )


def announce(run: Run) -> None:
  """Says what will train, notes the start, draws the noise levels."""
  if not is_primary():
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
