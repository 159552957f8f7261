"""Metrics of a run: JSON lines, progress bar, TensorBoard, W&B, Trackio."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any, NamedTuple
import uuid

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from lumiere_jax.data.loader import LoadTimer
from lumiere_jax.errors import UserError, foreign_errors
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.parallel.hardware import peak_flops
from lumiere_jax.parallel.multihost import barrier, is_primary
from lumiere_jax.storage.atomic import writing
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.param_overview import MEBI
from lumiere_jax.training.train_step import Metrics, Program

_NOT_PLOTTED = ("step", "log_snr", "share")
_LONG_WAIT = 0.25  # Share of time waiting for data above which to warn.
_GIF_MAX_FPS = 50.0


class JsonLines:
  """A file of one JSON object per line."""

  def __init__(self, path: Path):
    self.path = path

  def append(self, record: Mapping[str, Any]) -> None:
    """Appends one line and flushes it to disk."""
    with self.path.open("a") as file:
      file.write(json.dumps(record) + "\n")
      file.flush()
      os.fsync(file.fileno())

  def read(self) -> list[dict[str, Any]]:
    """All complete lines; a last line cut short by a kill is left out."""
    if not self.path.exists():
      return []
    lines = self.path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines, 1):
      try:
        records += [json.loads(line)] if line else []
      except ValueError as error:
        if number == len(lines):
          break
        raise UserError(
          f"{self.path}, line {number}",
          f"is not JSON ({error})",
          "correct or remove the line",
        ) from error
    return records

  def rewind(self, step: int) -> None:
    """Removes lines of later steps than the one a run resumes from."""
    if self.path.exists():
      kept = [json.dumps(r) + "\n" for r in self.read() if r["step"] <= step]
      with writing(self.path) as file:
        file.write("".join(kept).encode())


class PreviewClip(NamedTuple):
  """A (t, h, w, 3) uint8 clip and its file; its name is that of all steps."""

  name: str
  path: Path
  video: np.ndarray
  fps: float


class TensorBoard:
  """Event files in a folder; events of a killed run beyond `start` are void.

  Events are written synchronously: the writer thread of tensorboardX's
  SummaryWriter blocks forever once the disk is full.
  """

  def __init__(self, folder: Path, start: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    session = SessionLog(status=SessionLog.START)
    self._write(Event(step=start, session_log=session))

  def scalars(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes all numbers of a record, nested ones too."""
    values = [
      Summary.Value(tag=name, simple_value=value)
      for name, value in flat_numbers(record).items()
    ]
    self._write(Event(step=step, summary=Summary(value=values)))

  def clip(self, step: int, clip: PreviewClip) -> None:
    """Writes the clip as an animated GIF among the images."""
    with tempfile.TemporaryDirectory() as folder:
      gif = Path(folder) / "clip.gif"
      write_video(gif, clip.video, min(clip.fps, _GIF_MAX_FPS))
      encoded = gif.read_bytes()
    _, height, width, _ = clip.video.shape
    image = Summary.Image(
      height=height, width=width, colorspace=3, encoded_image_string=encoded
    )
    value = Summary.Value(tag=clip.name, image=image)
    self._write(Event(step=step, summary=Summary(value=[value])))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._file.write_event(event)
    self._file.flush()


class WeightsAndBiases:
  """A run on Weights & Biases; a resumed run goes on in the same one."""

  def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
    """Opens the run named in the workdir, or a new one."""
    try:
      import wandb
    except ImportError as error:
      raise UserError(
        f"config.train.wandb={project!r}",
        "needs the wandb package",
        "install it with pip install wandb, or leave the option out",
      ) from error
    self._wandb = wandb
    try:
      self._run = wandb.init(
        project=project,
        id=_run_id(workdir / "wandb_run"),
        name=workdir.name,
        dir=str(workdir),
        config=dict(config),
        resume="allow",
      )
    except wandb.errors.Error as error:  # no key, no network
      raise UserError(
        f"config.train.wandb={project!r}",
        f"cannot be opened ({error})",
        "log in with `wandb login`, set WANDB_MODE=offline, or leave the "
        "option out",
      ) from error

  def scalars(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes all numbers of a record, nested ones too."""
    self._run.log(flat_numbers(record), step=step)

  def clip(self, step: int, clip: PreviewClip) -> None:
    """Sends the file of a clip."""
    is_image = clip.path.suffix == ".png"
    kind = self._wandb.Image if is_image else self._wandb.Video
    self._run.log({clip.name: kind(str(clip.path))}, step=step)

  def close(self) -> None:
    """Finishes the run."""
    self._run.finish()


class Trackio:
  """A run in Trackio's local database; a resumed run goes on in the same one.

  It needs no account and no network. What a resumed run does again is there
  twice, since Trackio keeps every value of a step.
  """

  def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
    """Opens the run named in the workdir, or a new one."""
    field = f"config.train.trackio={project!r}"
    try:
      import trackio
    except ImportError as error:
      raise UserError(
        field,
        "needs the trackio package",
        "install it with pip install trackio, or leave the option out",
      ) from error
    self._trackio = trackio
    with foreign_errors(
      lambda why: UserError(
        field,
        f"cannot be opened ({why})",
        "choose another name, check TRACKIO_DIR, or leave the option out",
      )
    ):
      self._run = trackio.init(
        project=project,
        name=f"{workdir.name}-{_run_id(workdir / 'trackio_run')}",
        config=dict(config),
        resume="allow",
        embed=False,
      )

  def scalars(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes all numbers of a record, nested ones too."""
    self._run.log(flat_numbers(record), step=step)

  def clip(self, step: int, clip: PreviewClip) -> None:
    """Copies the file of a clip into Trackio's folder."""
    is_image = clip.path.suffix == ".png"
    kind = self._trackio.Image if is_image else self._trackio.Video
    self._run.log({clip.name: kind(str(clip.path))}, step=step)

  def close(self) -> None:
    """Finishes the run."""
    self._run.finish()


def _run_id(file: Path) -> str:
  """The identifier in a file of the workdir, which is made on first use."""
  if not file.exists():
    file.write_text(uuid.uuid4().hex[:8])
  return file.read_text()


def flat_numbers(record: Mapping[str, Any]) -> dict[str, float]:
  """Numbers in nested mappings and lists, such as {'grad_norms/mid': 0.1}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): float(value)
    for path, value in jax.tree_util.tree_leaves_with_path(dict(record))
    if isinstance(value, int | float)
  }


class MetricLogger:
  """Log files, progress bar and metric writers; only process 0 writes.

  Reported speed is that of the steps: time in `untimed` does not count.
  """

  def __init__(
    self,
    experiment: Experiment,
    workdir: Path,
    start: int,
    load_timer: LoadTimer,
  ):
    """Opens the files and removes records beyond `start`, the first step."""
    self._experiment, self._load_timer = experiment, load_timer
    self._primary = is_primary()
    self._metrics = JsonLines(workdir / "metrics.jsonl")
    self._held_out = JsonLines(workdir / "held_out.jsonl")
    self._writers: list[TensorBoard | WeightsAndBiases | Trackio] = []
    if self._primary:
      for log in (self._metrics, self._held_out):
        log.rewind(start)
      self._writers.append(TensorBoard(workdir / "tensorboard", start))
      config = dataclasses.asdict(experiment)
      if project := experiment.train.wandb:
        self._writers.append(WeightsAndBiases(project, workdir, config))
      if project := experiment.train.trackio:
        self._writers.append(Trackio(project, workdir, config))
    barrier("journal")  # all processes read the rewound files
    self._warned = False
    self._bar = tqdm(
      desc=experiment.stage,
      initial=start,
      total=experiment.train.steps,
      unit="step",
      mininterval=0.5 if sys.stderr.isatty() else 15,
      dynamic_ncols=True,
      disable=not self._primary,
    )
    self.start_clock()

  def start_clock(self) -> None:
    """Starts timing, and counting, anew."""
    self._began = time.monotonic()
    self._steps, self._flops, self._left_out, self._waited = 0, 0, 0.0, 0.0

  def held_out_records(self) -> list[dict[str, Any]]:
    """Records of held-out losses so far."""
    return self._held_out.read()

  def log_step(self, step: int, metrics: Metrics, flops: int) -> None:
    """Counts a step, from 1, and its model FLOPs.

    At log steps, waits for its metrics and writes them; too many skipped steps
    in a row are a UserError then.
    """
    config = self._experiment.train
    self._steps += 1
    self._flops += flops
    self._bar.update()
    if step % config.log_every and step != config.steps:
      return
    values = jax.tree.map(float, metrics)
    in_a_row = int(values.pop("skipped_in_a_row"))
    skipped = int(values["skipped"])
    record = {"step": step, **values, "skipped": skipped, **self._speed()}
    self._write(self._metrics, record, "train")
    self._bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
    if in_a_row >= config.max_skips:
      raise UserError(
        f"step {step}:",
        f"the gradients of the last {in_a_row} steps were not finite, so "
        "these steps were skipped",
        "restart with a lower config.train.learning_rate or clip_norm, or "
        "with config.execution.dtype=float32",
      )

  def log_held_out(self, record: Mapping[str, Any]) -> None:
    """Writes a record of the held-out loss."""
    self._write(self._held_out, record, "held_out")

  def log_previews(self, step: int, clips: Sequence[PreviewClip]) -> None:
    """Sends clips to the metric writers."""
    for clip in clips:
      for writer in self._writers:
        writer.clip(step, clip)
    if clips:
      self.print(f"previews: {clips[0].path} and {len(clips) - 1} more")

  def log_compilation(
    self, shape: tuple[int, ...], program: Program, waited: float
  ) -> None:
    """Reports a program for batches of a shape, and the seconds waited for it.

    These count for no step.
    """
    self._left_out += waited
    memory = program.temporary_bytes
    size = "" if memory is None else f", {memory / MEBI:,.0f} MiB temporary"
    self.print(
      f"compiled for batches of {'x'.join(map(str, shape))} in "
      f"{program.seconds:.0f} s: {program.flops / 1e9:.3g} GFLOP a step{size}"
    )

  def print(self, text: str) -> None:
    """Prints on stderr, above the progress bar."""
    if self._primary:
      self._bar.write(text, file=sys.stderr)

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Time in this block counts as waiting for data."""
    before = time.monotonic()
    yield
    self._waited += time.monotonic() - before

  @contextlib.contextmanager
  def untimed(self, metrics: Metrics | None) -> Iterator[None]:
    """Waits for the last step's metrics; then, time counts for no step."""
    jax.block_until_ready(metrics)
    before = time.monotonic()
    yield
    self._left_out += time.monotonic() - before

  def close(self) -> None:
    """Flushes and closes all writers."""
    self._bar.close()
    for writer in self._writers:
      writer.close()

  def _write(
    self, log: JsonLines, record: Mapping[str, Any], name: str
  ) -> None:
    if self._primary:
      log.append(record)
      scalars = {k: v for k, v in record.items() if k not in _NOT_PLOTTED}
      for writer in self._writers:
        writer.scalars(record["step"], {name: scalars})

  def _speed(self) -> dict[str, Any]:
    """Speed since the last log step; `tflops` and `mfu` are per device."""
    seconds = max(time.monotonic() - self._began - self._left_out, 1e-9)
    flops = self._flops / seconds / jax.device_count()
    peak = peak_flops(jax.devices()[0].device_kind)
    waited = self._waited / seconds
    load_seconds = self._load_timer.take()
    if waited > _LONG_WAIT and not self._warned and self._steps > 1:
      self._warned = True
      self.print(
        f"data: {waited:.0%} of the time is spent waiting for clips; raise "
        "config.data.threads, or preprocess the clips (python -m "
        "lumiere_jax.prepare)"
      )
    clips = self._steps * self._experiment.train.batch_size
    self.start_clock()
    return {
      "seconds": round(seconds, 3),
      "clips_per_s": clips / seconds,
      "data_wait": waited,
      "loader_clips_per_s": load_seconds
      and self._experiment.data.threads / load_seconds,
      "tflops": flops / 1e12,
      "mfu": peak and flops / peak,
    }
