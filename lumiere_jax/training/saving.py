"""When a run is measured, shown and saved, and what is kept."""

from collections.abc import Mapping
import functools
import time
from typing import Any

from lumiere_jax.parallel.agree import as_the_first_says
from lumiere_jax.training.evaluation import HeldOut
from lumiere_jax.training.journal import Journal
from lumiere_jax.training.previews import Previews
from lumiere_jax.training.run import Run

BEST = "best"
"""The bundle of the lowest held-out loss, beside `bundle`, the newest one."""


class Saver:
  """Measures, shows and saves the state of a run when the loop says so."""

  def __init__(self, run: Run, journal: Journal):
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
    return as_the_first_says(minutes >= self._config.save_minutes)

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
