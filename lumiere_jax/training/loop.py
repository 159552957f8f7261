"""The one training loop, for every stage."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from pathlib import Path
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from lumiere_jax.data.pipeline import Loader, batches, held_out_batches
from lumiere_jax.data.source import Source
from lumiere_jax.data.sources import open_sources
from lumiere_jax.data.text import TextCache, TextEncoder
from lumiere_jax.parallel import mesh as meshes
from lumiere_jax.pipelines.text import null_text, open_text_encoder
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.evaluation import HeldOut
from lumiere_jax.training.export import save_bundle
from lumiere_jax.training.interrupt import interruptible
from lumiere_jax.training.logs import JsonLines
from lumiere_jax.training.start import (
  check_init_from,
  check_text,
  start_or_resume,
)
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.step import Metrics, make_train_step
from lumiere_jax.training.tasks import Batch, Task
from lumiere_jax.typing import FlatParams, UserError


def train(experiment: Experiment, workdir: Path) -> None:
  """Trains a stage up to `train.steps`, going on from what `workdir` holds.

  Leaves in it: metrics.jsonl and held_out.jsonl, runs.jsonl (a line per
  start), checkpoints/, frozen/, bundle/ and data_report.jsonl.

  Raises:
    UserError: a config value, a file or a checkpoint cannot be used.
  """
  check_init_from(experiment, resuming=(workdir / "checkpoints").is_dir())
  make_workdir(workdir)
  mesh = meshes.make_mesh()
  meshes.check_batch(experiment.train.batch_size, mesh)
  with interruptible() as stopped:
    run = Run.open(experiment, workdir, mesh)
    with contextlib.closing(run.checkpoints):
      run.loop(stopped)


def make_workdir(workdir: Path) -> None:
  """Makes the folder, or raises a UserError where that cannot be."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be made ({error.strerror}); name a folder "
      "you may write to"
    ) from error


@dataclasses.dataclass(kw_only=True)
class Run:
  """A run under way: everything the loop touches."""

  experiment: Experiment
  workdir: Path
  mesh: jax.sharding.Mesh
  task: Task
  text: TextEncoder
  captions: TextCache
  sources: tuple[Source, Source]
  checkpoints: Checkpoints
  state: TrainState
  frozen: FlatParams
  frozen_name: str

  @classmethod
  def open(
    cls, experiment: Experiment, workdir: Path, mesh: jax.sharding.Mesh
  ) -> "Run":
    """Opens data, text and weights; resumes where a checkpoint is."""
    text_config = experiment.text
    sources = open_sources(
      experiment.data,
      seed=experiment.seed,
      report=workdir / "data_report.jsonl",
    )
    text = open_text_encoder(
      text_config.tokenizer, text_config.weights, text_config.max_length
    )
    check_text(experiment, text)
    captions = TextCache(text, text_config.cache or workdir / "text_cache")
    clips, held_out = sources
    asked = min(len(held_out), experiment.train.eval_clips)
    captions.fill(
      caption
      for source, count in ((clips, len(clips)), (held_out, asked))
      for index in range(count)
      for caption in source.captions(index)
    )
    null, mask = map(
      jnp.asarray, null_text(text, experiment.diffusion.null_text)
    )
    task = Task(experiment=experiment, null_text=null, null_mask=mask)
    checkpoints = Checkpoints(workdir, experiment.train)
    state, frozen, name = start_or_resume(
      experiment, task, checkpoints, mesh, text.identity
    )
    return cls(
      experiment=experiment,
      workdir=workdir,
      mesh=mesh,
      task=task,
      text=text,
      captions=captions,
      sources=sources,
      checkpoints=checkpoints,
      state=state,
      frozen=frozen,
      frozen_name=name,
    )

  def loop(self, stopped: Callable[[], bool]) -> None:
    """Evaluate - save - next batch - step - log, until done or told to stop."""
    config = self.experiment.train
    start = int(self.state.step)
    metrics_log = JsonLines(self.workdir / "metrics.jsonl")
    held_out_log = JsonLines(self.workdir / "held_out.jsonl")
    self._note_start(start, (metrics_log, held_out_log))
    train_step = make_train_step(self.experiment, self.task)
    evaluate = self._make_evaluate(held_out_log)
    key = jax.random.key(self.experiment.seed)
    due = lambda every, step: bool(every) and step % every == 0
    batch_iterator = self._batches(start)
    clock = time.monotonic()
    with contextlib.closing(batch_iterator), self._bar(start) as bar:
      for step in range(start, config.steps):
        if step == 0 or due(config.eval_every, step):
          evaluate()
        if step > start and due(config.save_every, step):
          self.save()
        if stopped():
          break
        batch = next(batch_iterator)
        self.state, metrics = train_step(self.state, self.frozen, batch, key)
        if due(config.log_every, step + 1) or step + 1 == config.steps:
          clock, seconds = time.monotonic(), time.monotonic() - clock
          self._log(metrics_log, bar, step + 1, metrics, seconds)
        bar.update()
    if int(self.state.step) == config.steps:
      evaluate()
    self.save()

  def save(self) -> None:
    """A checkpoint, and the bundle of averaged weights."""
    if self.checkpoints.latest_step() != int(self.state.step):
      self.checkpoints.save(self.state, self.frozen_name)
    if jax.process_index() == 0:
      save_bundle(
        self.workdir / "bundle",
        self.experiment,
        self.state,
        self.checkpoints,
        self.frozen_name,
        self.text,
      )

  def _note_start(self, start: int, logs: tuple[JsonLines, ...]) -> None:
    if jax.process_index() != 0:
      return
    for log in logs:
      log.rewind(start)
    count = lambda flat: sum(leaf.size for leaf in flat.values())
    trained, frozen = count(self.state.trainable), count(self.frozen)
    JsonLines(self.workdir / "runs.jsonl").append(
      {
        "start_step": start,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "parameters": {"trainable": trained, "frozen": frozen},
        "config": dataclasses.asdict(self.experiment),
      }
    )
    print(
      f"{self.experiment.stage}: {len(self.sources[0])} clips, "
      f"{trained:,} parameters train, {frozen:,} are frozen; "
      f"steps {start} to {self.experiment.train.steps}",
      file=sys.stderr,
    )

  def _log(
    self,
    log: JsonLines,
    bar: tqdm,
    step: int,
    metrics: Metrics,
    seconds: float,
  ) -> None:
    """The one place where the host waits for the device."""
    names = ("loss", "grad_norm", "learning_rate")
    values = {name: float(metrics[name]) for name in names}
    if jax.process_index() == 0:
      log.append({"step": step, **values, "seconds": round(seconds, 3)})
    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

  def _bar(self, start: int) -> tqdm:
    return tqdm(
      desc=self.experiment.stage,
      initial=start,
      total=self.experiment.train.steps,
      unit="step",
      mininterval=0.5 if sys.stderr.isatty() else 15,
      dynamic_ncols=True,
    )

  def _device_batch(self, batch: dict[str, Any]) -> Batch:
    text, mask = self.captions(list(batch["caption"]))
    return meshes.to_devices(
      self.mesh, {"video": batch["video"], "text": text, "text_mask": mask}
    )

  def _loader(self, source: Source) -> Loader:
    experiment = self.experiment
    return Loader(
      source=source, seed=experiment.seed, masks=experiment.data.mask_mix
    )

  def _batches(self, start: int) -> Iterator[Batch]:
    return batches(
      self._loader(self.sources[0]),
      batch_size=self.experiment.train.batch_size,
      start_step=start,
      num_threads=self.experiment.data.threads,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      finish=self._device_batch,
    )

  def _make_evaluate(self, log: JsonLines) -> Callable[[], None]:
    """Takes and logs the held-out loss, once for each step it is due at."""
    config = self.experiment.train
    done = {record["step"] for record in log.read()}
    clips = held_out_batches(
      self._loader(self.sources[1]), config.eval_clips, config.batch_size
    )
    held_out = HeldOut(
      self.task, [(self._device_batch(batch), real) for batch, real in clips]
    )

    def evaluate() -> None:
      step = int(self.state.step)
      if step in done:
        return
      final = step == config.steps
      record = held_out(self.state, self.frozen, final=final)
      if jax.process_index() == 0:
        log.append(record)

    return evaluate
