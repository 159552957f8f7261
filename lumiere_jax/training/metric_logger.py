"""A run's metrics, progress bar and previews while it trains."""

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
  Clip,
  MetricWriter,
  TensorBoard,
  WeightsAndBiases,
)
from lumiere_jax.training.param_overview import MEBI
from lumiere_jax.training.train_step import Metrics, Program


class JsonLines:
  """One JSON object a line, appended and flushed to disk."""

  def __init__(self, path: Path):
    self.path = path

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes one line; it is on disk when this returns."""
    with self.path.open("a") as file:
      file.write(json.dumps(record) + "\n")
      file.flush()
      os.fsync(file.fileno())

  def read(self) -> list[dict[str, Any]]:
    """All complete lines; a last one cut short by a kill is left out.

    Raises:
      UserError: a line before the last is not JSON.
    """
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
          "",
          f"{self.path}, line {number} is not JSON ({error})",
          "mend or remove the line",
        ) from error
    return records

  def rewind(self, step: int) -> None:
    """Removes what a killed run wrote beyond the step it resumes from."""
    if not self.path.exists():
      return
    kept = [r for r in self.read() if r["step"] <= step]
    with writing(self.path) as file:
      file.write("".join(json.dumps(r) + "\n" for r in kept).encode())


# Of the losses by noise level: nothing to plot by themselves.
_AXES = ("log_snr", "share")


_WAITS_LONG = 0.25  # Share of the time waited for data that is worth a word.


class MetricLogger:
  """The files, bar and sinks of a run; only the first process writes.

  Speed is that of the steps alone: what passes in `apart` does not count.
  """

  def __init__(
    self, experiment: Experiment, workdir: Path, start: int, pace: LoadTimer
  ):
    """Opens the files and takes back what a killed run wrote beyond `start`.

    Args:
      experiment: that is run.
      workdir: of the run.
      start: the step it starts from.
      pace: how long clips take to load.
    """
    self._experiment, self._pace = experiment, pace
    self._first = is_primary()
    self._metrics = JsonLines(workdir / "metrics.jsonl")
    self._held_out = JsonLines(workdir / "held_out.jsonl")
    self._sinks: list[MetricWriter] = []
    if self._first:
      for log in (self._metrics, self._held_out):
        log.rewind(start)
      self._sinks = _open_sinks(experiment, workdir, start)
    barrier("journal")  # what was rewound is read by all
    self._interval = _Interval()
    self._warned = False
    self._bar = tqdm(
      desc=experiment.stage,
      initial=start,
      total=experiment.train.steps,
      unit="step",
      mininterval=0.5 if sys.stderr.isatty() else 15,
      dynamic_ncols=True,
      disable=not self._first,
    )

  def start_clock(self) -> None:
    """Time counts from here on."""
    self._interval = _Interval()

  def held_out(self) -> list[dict[str, Any]]:
    """Records of held-out losses up to now."""
    return self._held_out.read()

  def took_step(self, step: int, metrics: Metrics, flops: int) -> None:
    """Counts a step, and writes a line where one is due.

    A line is the one place where the host waits for the device.

    Args:
      step: number of the step, from 1.
      metrics: what it returned.
      flops: its model FLOPs.

    Raises:
      UserError: too many steps in a row had to be skipped.
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
        "",
        f"the gradients of the last {in_a_row} steps, up to step "
        f"{step}, were not finite, so these were skipped",
        "start again with a lower config.train.learning_rate or "
        "clip_norm, or in float32 (config.model.dtype=float32)",
      )

  def evaluated(self, record: Mapping[str, Any]) -> None:
    """Writes a record of the held-out loss."""
    self._write(self._held_out, record, "held_out")

  def previewed(self, step: int, clips: Sequence[Clip]) -> None:
    """Shows clips."""
    for clip in clips:
      for sink in self._sinks:
        sink.clip(step, clip)
    if clips:
      self.say(f"previews: {clips[0].path} and {len(clips) - 1} more")

  def compiled(
    self, shape: tuple[int, ...], program: Program, waited: float
  ) -> None:
    """Says that a program was compiled.

    Args:
      shape: of the batches.
      program: for these.
      waited: seconds of it, which count for no step.
    """
    self._interval.leave_out(waited)
    memory = program.temporary_bytes
    size = "" if memory is None else f", {memory / MEBI:,.0f} MiB to work in"
    self.say(
      f"compiled for batches of {'x'.join(map(str, shape))} in "
      f"{program.seconds:.0f} s: {program.flops / 1e9:.3g} GFLOP a step{size}"
    )

  def say(self, text: str) -> None:
    """One line or more on stderr, above the bar."""
    if self._first:
      self._bar.write(text, file=sys.stderr)

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Time in here is spent waiting for data."""
    before = time.monotonic()
    yield
    self._interval.waited += time.monotonic() - before

  @contextlib.contextmanager
  def apart(self, metrics: Metrics | None) -> Iterator[None]:
    """Time in here belongs to no step.

    Args:
      metrics: of the last step, which is waited for first.
    """
    jax.block_until_ready(metrics)
    before = time.monotonic()
    yield
    self._interval.leave_out(time.monotonic() - before)

  def close(self) -> None:
    """All is on disk, or sent, when this returns."""
    self._bar.close()
    for sink in self._sinks:
      sink.close()

  def _write(
    self, log: JsonLines, record: Mapping[str, Any], name: str
  ) -> None:
    if self._first:
      log.append(record)
      scalars = {k: v for k, v in record.items() if k not in _AXES}
      for sink in self._sinks:
        sink.scalars(record["step"], {name: scalars})

  def _speed(self) -> dict[str, Any]:
    """Speed since the last line, over all devices but for `tflops`, `mfu`."""
    done, self._interval = self._interval, _Interval()
    seconds = max(done.seconds, 1e-9)
    flops = done.flops / seconds / jax.device_count()
    peak = peak_flops(jax.devices()[0].device_kind)
    waited = done.waited / seconds
    to_load = self._pace.take()
    threads = self._experiment.data.threads
    if waited > _WAITS_LONG and not self._warned and done.steps > 1:
      self._warned = True
      self.say(
        f"data: {waited:.0%} of the time is spent waiting for clips; raise "
        "config.data.threads, or prepare the clips (python -m "
        "lumiere_jax.prepare)"
      )
    return {
      "seconds": round(seconds, 3),
      "clips_per_s": done.steps * self._experiment.train.batch_size / seconds,
      "data_wait": waited,
      "loader_clips_per_s": to_load and threads / to_load,
      "tflops": flops / 1e12,
      "mfu": peak and flops / peak,
    }


class _Interval:
  """What happened since the last line."""

  def __init__(self):
    self._began, self._left_out = time.monotonic(), 0.0
    self.steps, self.flops, self.waited = 0, 0, 0.0

  def leave_out(self, seconds: float) -> None:
    self._left_out += seconds

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._began - self._left_out


def _open_sinks(
  experiment: Experiment, workdir: Path, start: int
) -> list[MetricWriter]:
  sinks: list[MetricWriter] = [TensorBoard(workdir / "tensorboard", start)]
  if experiment.train.wandb:
    config = dataclasses.asdict(experiment)
    sinks.append(WeightsAndBiases(experiment.train.wandb, workdir, config))
  return sinks
