"""A profile of a few steps, for TensorBoard, XProf or Perfetto."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import jax

from lumiere_jax.training.config import TrainConfig


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
