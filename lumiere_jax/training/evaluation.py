"""Held-out loss of the averaged weights, on fixed clips and noise."""

from typing import Any

import jax
import numpy as np

from lumiere_jax.parallel.backend import compiler_options, platform_of
from lumiere_jax.parallel.multihost import replicated
from lumiere_jax.training.state import TrainState
from lumiere_jax.training.task import Batch, Task
from lumiere_jax.typing import FlatParams


class HeldOut:
  """The held-out loss; comparable from step to step."""

  def __init__(
    self, task: Task, mesh: jax.sharding.Mesh, batches: list[tuple[Batch, int]]
  ):
    """`batches`: each on the devices, and how many of its clips count."""
    self._batches = batches
    self._log_snrs = task.evaluation_log_snrs
    self._weights = np.diff(task.evaluation_bins)
    self._inflated = task.experiment.model.temporal is not None
    self._loss = jax.jit(
      lambda ema, frozen, batch, bypass: task.held_out_loss(
        {**ema, **frozen}, batch, bypass_temporal=bypass
      ),
      static_argnums=3,
      out_shardings=replicated(mesh),
      compiler_options=compiler_options(platform_of(mesh)),
    )

  def __call__(
    self, state: TrainState, frozen: FlatParams, *, final: bool
  ) -> dict[str, Any]:
    """A record for held_out.jsonl.

    Args:
      state: its averaged weights are evaluated.
      frozen: the other weights.
      final: also evaluate a video model without its temporal layers.

    Returns:
      step; loss; by_noise_level, log_snr (of the middle) and share (of the
      training draws, the weight in the loss) for each bin from clean to noisy;
      if evaluated, frame_by_frame, the loss without temporal layers.
    """
    losses = self._measure(state, frozen, bypass=False)
    record = {
      "step": int(state.step),
      "loss": float(self._weights @ losses),
      "log_snr": self._log_snrs,
      "share": [round(float(x), 4) for x in self._weights],
      "by_noise_level": [float(x) for x in losses],
    }
    if final and self._inflated:
      spatial = self._measure(state, frozen, bypass=True)
      record["frame_by_frame"] = float(self._weights @ spatial)
    return record

  def _measure(
    self, state: TrainState, frozen: FlatParams, *, bypass: bool
  ) -> np.ndarray:
    """(noise levels,) mean losses over the clips."""
    losses = [
      np.asarray(self._loss(state.ema, frozen, batch, bypass))[:, :real]
      for batch, real in self._batches
    ]
    return np.concatenate(losses, axis=1).mean(axis=1)
