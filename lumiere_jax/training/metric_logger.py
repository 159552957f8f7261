"""Metrics, progress bar and previews of a training run."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import sys
import time
from typing import Any

import jax
from tqdm import tqdm

from lumiere_jax.data.loader import LoadTimer
from lumiere_jax.errors import UserError
from lumiere_jax.parallel.hardware import peak_flops
from lumiere_jax.parallel.multihost import barrier, is_primary
from lumiere_jax.storage.atomic import writing
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.metric_writers import (
  MetricWriter,
  PreviewClip,
  TensorBoard,
  WeightsAndBiases,
)
from lumiere_jax.training.param_overview import MEBI
from lumiere_jax.training.train_step import Metrics, Program


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
    if not self.path.exists():
      return
    kept = [r for r in self.read() if r["step"] <= step]
    with writing(self.path) as file:
      file.write("".join(json.dumps(r) + "\n" for r in kept).encode())


# The axis of losses by noise level; not plotted as metrics.
_AXES = ("log_snr", "share")
_LONG_WAIT = 0.25  # Share of time waiting for data above which to warn.


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
    self._writers: list[MetricWriter] = []
    if self._primary:
      for log in (self._metrics, self._held_out):
        log.rewind(start)
      self._writers.append(TensorBoard(workdir / "tensorboard", start))
      if project := experiment.train.wandb:
        config = dataclasses.asdict(experiment)
        self._writers.append(WeightsAndBiases(project, workdir, config))
    barrier("journal")  # all processes read the rewound files
    self._interval = _Interval()
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

  def start_clock(self) -> None:
    """Starts timing."""
    self._interval = _Interval()

  def held_out_records(self) -> list[dict[str, Any]]:
    """Records of held-out losses so far."""
    return self._held_out.read()

  def log_step(self, step: int, metrics: Metrics, flops: int) -> None:
    """Counts a step; at log steps, waits for its metrics and writes them.

    Args:
      step: number of the step, from 1.
      metrics: of the step, on the device.
      flops: its model FLOPs.

    Raises:
      UserError: too many steps in a row were skipped.
    """
    config = self._experiment.train
    self._interval.steps += 1
    self._interval.flops += flops
    self._bar.update()
    if step % config.log_every and step != config.steps:
      return
    values = jax.tree.map(float, metrics)
    in_a_row = int(values.pop("skipped_in_a_row"))
    record = {
      "step": step,
      **values,
      "skipped": int(values["skipped"]),
      **self._speed(),
    }
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
    """Reports a compiled program for batches of a shape.

    Args:
      shape: of the batches.
      program: for these.
      waited: seconds that training waited for it; they count for no step.
    """
    self._interval.leave_out(waited)
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
    self._interval.waited += time.monotonic() - before

  @contextlib.contextmanager
  def untimed(self, metrics: Metrics | None) -> Iterator[None]:
    """Time in this block counts for no step.

    Args:
      metrics: of the last step; waits for them first.
    """
    jax.block_until_ready(metrics)
    before = time.monotonic()
    yield
    self._interval.leave_out(time.monotonic() - before)

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
      scalars = {k: v for k, v in record.items() if k not in _AXES}
      for writer in self._writers:
        writer.scalars(record["step"], {name: scalars})

  def _speed(self) -> dict[str, Any]:
    """Speed since the last log step; `tflops` and `mfu` are per device."""
    done, self._interval = self._interval, _Interval()
    seconds = max(done.seconds, 1e-9)
    flops = done.flops / seconds / jax.device_count()
    peak = peak_flops(jax.devices()[0].device_kind)
    waited = done.waited / seconds
    load_seconds = self._load_timer.take()
    threads = self._experiment.data.threads
    if waited > _LONG_WAIT and not self._warned and done.steps > 1:
      self._warned = True
      self.print(
        f"data: {waited:.0%} of the time is spent waiting for clips; raise "
        "config.data.threads, or preprocess the clips (python -m "
        "lumiere_jax.prepare)"
      )
    return {
      "seconds": round(seconds, 3),
      "clips_per_s": done.steps * self._experiment.train.batch_size / seconds,
      "data_wait": waited,
      "loader_clips_per_s": load_seconds and threads / load_seconds,
      "tflops": flops / 1e12,
      "mfu": peak and flops / peak,
    }


class _Interval:
  """Counters since the last log step."""

  def __init__(self):
    self._began, self._left_out = time.monotonic(), 0.0
    self.steps, self.flops, self.waited = 0, 0, 0.0

  def leave_out(self, seconds: float) -> None:
    self._left_out += seconds

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._began - self._left_out
