"""The one training loop, for every stage."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
from pathlib import Path
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from lumiere_jax.data.pipeline import batches, held_out_batch
from lumiere_jax.data.source import ClipSpec, Source
from lumiere_jax.data.sources import open_sources
from lumiere_jax.data.text import TextCache, TextEncoder
from lumiere_jax.models.inflate import split
from lumiere_jax.parallel import mesh as meshes
from lumiere_jax.pipelines.text import null_text, open_text_encoder
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.export import save_bundle
from lumiere_jax.training.logs import JsonLines
from lumiere_jax.training.start import (
  check_init_from,
  initial_params,
  trainable_pattern,
)
from lumiere_jax.training.state import (
  TrainState,
  apply_gradients,
  init_state,
  learning_rate,
  make_optimizer,
)
from lumiere_jax.training.tasks import Batch, Task
from lumiere_jax.typing import FlatParams, UserError

Metrics = dict[str, jax.Array]


def train(experiment: Experiment, workdir: Path) -> None:
  """Trains a stage up to `train.steps`, going on from what `workdir` holds.

  Leaves in it: metrics.jsonl and held_out.jsonl, runs.jsonl (a line per
  start), checkpoints/, frozen/, bundle/ and data_report.jsonl.

  Raises:
    UserError: a config value, a file or a checkpoint cannot be used.
  """
  check_init_from(experiment)
  make_workdir(workdir)
  mesh = meshes.make_mesh()
  meshes.check_batch(experiment.train.batch_size, mesh)
  run = Run.open(experiment, workdir, mesh)
  with contextlib.closing(run.checkpoints):
    run.loop()


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
    data, text_config = experiment.data, experiment.text
    sources = open_sources(
      kind=data.source,
      path=data.path,
      spec=ClipSpec(
        num_frames=data.num_frames, fps=data.fps, resolution=data.size
      ),
      num_clips=data.num_clips,
      two_objects=data.two_objects,
      held_out=data.held_out,
      seed=experiment.seed,
      report=workdir / "data_report.jsonl",
    )
    text = open_text_encoder(
      text_config.tokenizer, text_config.weights, text_config.max_length
    )
    check_text(experiment, text)
    captions = TextCache(text, text_config.cache or workdir / "text_cache")
    captions.fill([s.caption(i) for s in sources for i in range(len(s))])
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

  def loop(self) -> None:
    """Evaluate - save - next batch - step - log, until done or told to stop."""
    config = self.experiment.train
    start = int(self.state.step)
    log = JsonLines(self.workdir / "metrics.jsonl")
    held_out = JsonLines(self.workdir / "held_out.jsonl")
    self._note_start(start, (log, held_out))
    train_step = make_train_step(self.experiment, self.task)
    evaluate = self._make_evaluate(held_out)
    key = jax.random.key(self.experiment.seed)
    due = lambda every, step: bool(every) and step % every == 0
    clock = time.monotonic()
    with interruptible() as stopped, self._bar(start) as bar:
      batch_iterator = self._batches(start)
      for step in range(start, config.steps):
        if step == 0 or due(config.eval_every, step):
          evaluate(step)
        if step > start and due(config.save_every, step):
          self.save()
        if stopped():
          break
        batch = next(batch_iterator)
        self.state, metrics = train_step(self.state, self.frozen, batch, key)
        if due(config.log_every, step + 1) or step + 1 == config.steps:
          now = time.monotonic()
          names = ("loss", "grad_norm", "learning_rate")
          record = {
            "step": step + 1,
            **{name: float(metrics[name]) for name in names},
            "seconds": round(now - clock, 3),
          }
          if jax.process_index() == 0:
            log.append(record)
          bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
          clock = now
        bar.update()
      batch_iterator.close()
    if int(self.state.step) == config.steps:
      evaluate(config.steps)
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

  def _batches(self, start: int) -> Iterator[Batch]:
    iterator = batches(
      self.sources[0],
      batch_size=self.experiment.train.batch_size,
      seed=self.experiment.seed,
      start_step=start,
      num_threads=self.experiment.data.threads,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    with contextlib.closing(iterator):
      for batch in iterator:
        yield self._device_batch(batch)

  def _make_evaluate(self, log: JsonLines) -> Callable[[int], None]:
    """Held-out loss of the averaged weights on fixed clips and noise."""
    config = self.experiment.train
    done = {record["step"] for record in log.read()}
    loss = jax.jit(
      lambda ema, frozen, batch: self.task.held_out_loss(
        {**ema, **frozen}, batch
      )
    )

    def evaluate(step: int) -> None:
      if step in done:
        return
      clips = held_out_batch(self.sources[1], config.eval_clips)
      rows = [
        {k: v[i : i + config.batch_size] for k, v in clips.items()}
        for i in range(0, len(clips["video"]), config.batch_size)
      ]
      losses = np.concatenate(
        [
          np.asarray(loss(self.state.ema, self.frozen, self._device_batch(r)))
          for r in rows
        ],
        axis=1,
      )
      if jax.process_index() == 0:
        log.append(
          {
            "step": step,
            "loss": float(losses.mean()),
            "by_noise_level": [float(x) for x in losses.mean(axis=1)],
          }
        )

    return evaluate


def check_text(experiment: Experiment, text: TextEncoder) -> None:
  """Raises a UserError where network and text encoder differ in width."""
  wanted, given = experiment.model.text_dim, text.config.d_model
  if wanted != given:
    raise UserError(
      f"config.model.text_dim={wanted}, but the text encoder is {given} wide; "
      "give T5 v1.1 weights of that width with --config.text.weights=DIR"
    )


def start_or_resume(
  experiment: Experiment,
  task: Task,
  checkpoints: Checkpoints,
  mesh: jax.sharding.Mesh,
  text_identity: str,
) -> tuple[TrainState, FlatParams, str]:
  """The newest state of the workdir, or the first one.

  Returns:
    state, frozen weights and the name these are saved under.

  Raises:
    UserError: weights or checkpoint are of another config.
  """
  optimizer = make_optimizer(experiment.train)
  pattern = trainable_pattern(experiment)
  everywhere = meshes.replicated(mesh)
  step = checkpoints.latest_step()
  if step is None:
    params = initial_params(experiment, task, text_identity)
    trainable, frozen = split(params, pattern)
    state = init_state(trainable, optimizer)
    name = checkpoints.save_frozen(jax.device_get(frozen))
  else:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    abstract = jax.eval_shape(
      functools.partial(init_state, optimizer=optimizer),
      split(shapes, pattern)[0],
    )
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      abstract,
    )
    state, name = checkpoints.restore(abstract, step)
    frozen = checkpoints.load_frozen(name)
  put = functools.partial(jax.device_put, device=everywhere)
  return put(state), put(frozen), name


def make_train_step(
  experiment: Experiment, task: Task
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The jitted step: (state, frozen, batch, key) -> (state, metrics).

  Gradients are taken with respect to the trainable leaves alone; random keys
  are folded from the step, so a resumed run repeats itself bit for bit.
  """
  optimizer = make_optimizer(experiment.train)
  schedule = learning_rate(experiment.train)

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(
    state: TrainState, frozen: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    step_key = jax.random.fold_in(key, state.step)

    def loss_of(trainable: FlatParams) -> tuple[jax.Array, Metrics]:
      return task.loss({**trainable, **frozen}, batch, step_key)

    (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(
      state.trainable
    )
    metrics = {
      "loss": loss,
      "grad_norm": optax.global_norm(grads),
      "learning_rate": schedule(state.step),
    }
    return apply_gradients(state, grads, optimizer, experiment.train), metrics

  return train_step


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
  """SIGTERM and Ctrl-C ask the loop to save and end; a second Ctrl-C kills."""
  asked: list[int] = []

  def ask(number: int, frame: Any) -> None:
    del frame
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)
    print("\nstopping: the step is finished, then saved", file=sys.stderr)

  try:
    old = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: signals are somebody else's
    old = {}
  try:
    yield lambda: bool(asked)
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
