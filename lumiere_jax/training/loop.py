"""The training loop, the same for every stage."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
from pathlib import Path
import sys
import time

import jax

from lumiere_jax.models.attention import check_platform
from lumiere_jax.parallel.backend import platform_of
from lumiere_jax.parallel.mesh import check_batch, make_mesh
from lumiere_jax.parallel.multihost import broadcast_flag, is_primary
from lumiere_jax.training.compatibility import (
  RUNS,
  check_resumed,
  check_text_encoder,
  finished_step,
  last_run,
)
from lumiere_jax.training.config import Experiment, TrainConfig
from lumiere_jax.training.evaluation import HeldOut
from lumiere_jax.training.initialization import (
  check_init_from,
  resolve_max_distance,
  resolve_shift,
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
  handle_preemption,
  open_workdir,
  report_disk_errors,
)

BEST = "best"
"""The bundle with the lowest held-out loss, beside `bundle`, the newest."""


class ProfileWindow:
  """Profiles the configured steps into `workdir/profile`."""

  def __init__(self, config: TrainConfig, workdir: Path):
    first = config.profile_from
    self._steps = range(first, first + config.profile_steps)
    self._folder = workdir / "profile"
    self._on = False

  @contextlib.contextmanager
  def around(self, step: int) -> Iterator[None]:
    """Wraps a step; a run resumed inside the window profiles the rest."""
    if step in self._steps and not self._on:
      jax.profiler.start_trace(str(self._folder))
      self._on = True
    yield
    if self._on and step + 1 not in self._steps:
      jax.effects_barrier()
      jax.profiler.stop_trace()
      self._on = False


class PeriodicActions:
  """Evaluation, previews and saving, and when saving is due."""

  def __init__(self, run: Run, logger: MetricLogger):
    self._run, self._logger = run, logger
    self._config = run.experiment.train
    self._saved_at = time.monotonic()
    # Losses at other noise levels are not comparable.
    levels = run.task.evaluation_log_snrs
    self._losses = {
      r["step"]: r["loss"]
      for r in logger.held_out_records()
      if r.get("log_snr") == levels
    }

  @functools.cached_property
  def _held_out(self) -> HeldOut:
    return HeldOut(self._run)

  @functools.cached_property
  def _previews(self) -> Previews:
    return Previews(self._run)

  def evaluate(self) -> None:
    """Computes and logs the held-out loss, once per step."""
    step = self._run.step
    if self._config.eval_clips and step not in self._losses:
      record = self._held_out(final=step == self._config.steps)
      self._logger.log_held_out(record)
      self._losses[step] = record["loss"]

  def preview(self) -> None:
    """Samples and logs preview clips."""
    self._logger.log_previews(self._run.step, self._previews())

  def save_due(self, step: int) -> bool:
    """Whether to save: by steps, by minutes, or as the best state so far."""
    return (
      step % self._config.save_every == 0
      or self._is_best(step)
      or self._minutes_passed(step)
    )

  def _minutes_passed(self, step: int) -> bool:
    """By the first process's clock; read at log steps, as it is a broadcast."""
    if not self._config.save_minutes or step % self._config.log_every:
      return False
    minutes = (time.monotonic() - self._saved_at) / 60
    return broadcast_flag(minutes >= self._config.save_minutes)

  def save(self) -> None:
    """Saves a checkpoint, the bundle and, if it is the best, that bundle."""
    run, step = self._run, self._run.step
    run.checkpoints.save(run.state, run.frozen_name, self._losses.get(step))
    self._saved_at = time.monotonic()
    run.export()
    if self._is_best(step):
      run.export(BEST)

  def _is_best(self, step: int) -> bool:
    """Whether this step has the lowest held-out loss so far."""
    if not self._config.keep_best or not step or step not in self._losses:
      return False
    earlier = [loss for s, loss in self._losses.items() if 0 < s < step]
    return all(self._losses[step] < loss for loss in earlier)


def train(experiment: Experiment, workdir: Path) -> None:
  """Trains a stage up to `train.steps`; resumes the run in `workdir`.

  docs/training.md describes the files it writes.

  Raises:
    UserError: a config value, a file or a checkpoint cannot be used, or the
      workdir cannot be written.
  """
  resuming = experiment.resume and (workdir / "checkpoints").is_dir()
  check_init_from(experiment, resuming=resuming)
  before = last_run(workdir) if resuming else {}
  experiment = resolve_shift(experiment, before)
  experiment = resolve_max_distance(experiment, before if resuming else None)
  check_resumed(experiment, before)
  with (
    report_disk_errors(workdir),
    open_workdir(workdir, resume=experiment.resume),
    handle_preemption() as stop_requested,
  ):
    if resuming and (step := finished_step(experiment, workdir)):
      if is_primary():
        print(
          f"{experiment.stage}: finished at step {step}, nothing to do; to "
          f"train on, set config.train.steps above {step}",
          file=sys.stderr,
        )
      return
    mesh = make_mesh(experiment.mesh)
    check_platform(experiment.execution.attention_kernel, platform_of(mesh))
    config = experiment.train
    check_batch(config.batch_size, config.accumulate, mesh)
    with contextlib.closing(Run(experiment, workdir, mesh)) as run:
      check_text_encoder(run.text.identity, before)
      report_start(run)
      logger = MetricLogger(experiment, workdir, run.step, run.load_timer)
      with contextlib.closing(logger), jax.set_mesh(mesh):
        loop(run, logger, stop_requested)


def loop(
  run: Run, logger: MetricLogger, stop_requested: Callable[[int], bool]
) -> None:
  """Evaluate, save, next batch, step, log; until done or asked to stop."""
  config, preview = run.experiment.train, run.experiment.preview
  due = lambda every, step: bool(every) and step % every == 0
  start = run.step
  train_step = TrainStep(run.experiment, run.task, logger.log_compilation)
  actions = PeriodicActions(run, logger)
  profile = ProfileWindow(config, run.workdir)
  key = jax.random.key(run.experiment.seed)
  metrics = None
  with contextlib.closing(run.batches()) as batches:
    first_batch = []
    logger.start_clock()
    for step in range(start, config.steps):
      if stop_requested(step):
        break
      if step == start:
        with logger.untimed(metrics):
          first_batch.append(next(batches))
          train_step.prepare(run.state, run.frozen, first_batch[0], key)
          logger.print("compiling the training step")
      if step == 0 or due(config.eval_every, step):
        with logger.untimed(metrics):
          actions.evaluate()
      if step > start and due(preview.every, step):
        with logger.untimed(metrics):
          actions.preview()
      if step > start and due(config.snapshot_every, step):
        with logger.untimed(metrics):
          run.save_averages()
      if step > start and actions.save_due(step):
        with logger.untimed(metrics):
          actions.save()
      with logger.waiting_for_data():
        batch = first_batch.pop() if first_batch else next(batches)
      with profile.around(step):
        run.state, metrics = train_step(run.state, run.frozen, batch, key)
      logger.log_step(step + 1, metrics, train_step.flops(batch))
  if run.step == config.steps:
    run.save_averages()
    actions.evaluate()
    if preview.every and start < config.steps:
      actions.preview()
  actions.save()
  logger.print(
    f"{run.experiment.stage}: saved at step {run.step} of {config.steps}; "
    f"averaged weights in {run.workdir / 'bundle'}"
  )


def report_start(run: Run) -> None:
  """Prints what trains, appends to `runs.jsonl`, draws `noise.svg`."""
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
  stage, train = run.experiment.stage, run.experiment.train
  print(
    parameter_table(run.state.trainable, run.frozen),
    memory_table(memory),
    f"{stage}: training noise levels are shifted by "
    f"{run.experiment.diffusion.shift:g} (noise.svg)",
    f"{stage}: {len(run.sources[0])} clips, {trained:,} trainable and "
    f"{frozen:,} frozen parameters; steps {run.step} to {train.steps}",
    sep="\n",
    file=sys.stderr,
  )
