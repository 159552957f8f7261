"""Held-out loss of the averaged weights, on fixed clips and noise."""

from typing import Any

import jax
import numpy as np

from lumiere_jax.parallel.backend import compiler_options, platform_of
from lumiere_jax.parallel.multihost import replicated
from lumiere_jax.training.run import Run


class HeldOut:
  """The held-out loss; comparable from step to step."""

  def __init__(self, run: Run):
    self._run, task = run, run.task
    self._batches = run.held_out_batches()
    self._log_snrs = task.evaluation_log_snrs
    self._weights = np.diff(task.evaluation_bins)
    self._inflated = run.experiment.model.temporal is not None
    self._loss = jax.jit(
      lambda ema, frozen, batch, bypass: task.held_out_loss(
        {**ema, **frozen}, batch, bypass_temporal=bypass
      ),
      static_argnums=3,
      out_shardings=replicated(run.mesh),
      compiler_options=compiler_options(platform_of(run.mesh)),
    )

  def __call__(self, *, final: bool) -> dict[str, Any]:
    """A record for held_out.jsonl.

    The `final` one also has the loss of a video model without its temporal
    layers.

    Returns:
      step; loss; by_noise_level, log_snr (of the middle) and share (of the
      training draws, the weight in the loss) for each bin from clean to noisy;
      if evaluated, frame_by_frame, the loss without temporal layers.
    """
    losses = self._measure(bypass=False)
    record = {
      "step": self._run.step,
      "loss": float(self._weights @ losses),
      "log_snr": self._log_snrs,
      "share": [round(float(x), 4) for x in self._weights],
      "by_noise_level": [float(x) for x in losses],
    }
    if final and self._inflated:
      spatial = self._measure(bypass=True)
      record["frame_by_frame"] = float(self._weights @ spatial)
    return record

  def _measure(self, *, bypass: bool) -> np.ndarray:
    """(noise levels,) mean losses over the clips."""
    weights = self._run.state.ema, self._run.frozen
    losses = [
      np.asarray(self._loss(*weights, batch, bypass))[:, :real]
      for batch, real in self._batches
    ]
    return np.concatenate(losses, axis=1).mean(axis=1)
