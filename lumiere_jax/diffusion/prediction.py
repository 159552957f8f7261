"""The forward process and the one conversion between what networks predict."""

from typing import Protocol, runtime_checkable

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.schedules import alpha_sigma
from lumiere_jax.errors import check_choice
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

KINDS = ("eps", "v", "x0")
"""What a network may predict; also the spaces a loss may be taken in."""


@struct.dataclass
class Prediction:
  """One prediction in its three forms, each (b, t, h, w, c) float32.

  With z = alpha x0 + sigma eps, each form follows from any other and z.

  Attributes:
    x0: the clean video.
    eps: the noise.
    v: alpha eps - sigma x0 (Salimans and Ho; Imagen Video).
    log_var: the learned log-variance of a sampling step, as its place in the
      range such models learn: 0 is the posterior's (the smallest), 1 the
      forward step's (Improved DDPM, eq. 15). So it fits every pair of steps.
      None: the model learned none.
  """

  x0: Video
  eps: Video
  v: Video
  log_var: Video | None = None


@runtime_checkable
class Denoiser(Protocol):
  """Anything that predicts: a network, or one wrapped by this room.

  Wrappers may fold windows into the batch, first all samples of one window,
  then all of the next: a denoiser with per-sample values of its own repeats
  them in that order.
  """

  def __call__(self, z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    """Predicts from noisy videos `z`, their log-SNR and the conditioning."""
    ...


def expand(values: PerSample) -> Float[Array, "b 1 1 1 1"]:
  """Per-sample values, ready to broadcast against videos."""
  return values.reshape(-1, 1, 1, 1, 1)


@typechecked
def add_noise(x0: Video, eps: Video, log_snr: PerSample) -> Video:
  """z = alpha x0 + sigma eps, per sample."""
  alpha, sigma = alpha_sigma(expand(log_snr))
  return alpha * x0 + sigma * eps


@typechecked
def to_v(x0: Video, eps: Video, log_snr: PerSample) -> Video:
  """v = alpha eps - sigma x0, per sample."""
  alpha, sigma = alpha_sigma(expand(log_snr))
  return alpha * eps - sigma * x0


@typechecked
def predict(
  kind: str,
  output: Video,
  z: Video,
  log_snr: PerSample,
  log_var: Video | None = None,
) -> Prediction:
  """Reads a network's output as a prediction, computed in float32.

  Args:
    kind: what the output is, one of `KINDS`.
    output: the network's output, any float type.
    z: the noisy videos it was given.
    log_snr: their log-SNR; finite.
    log_var: passed on; see `Prediction`.

  Raises:
    UserError: an unknown kind.
  """
  check_choice("prediction kind", kind, KINDS)
  alpha, sigma = alpha_sigma(expand(log_snr))
  output, z = output.astype(jnp.float32), z.astype(jnp.float32)
  if kind == "v":
    x0, eps = alpha * z - sigma * output, sigma * z + alpha * output
    return Prediction(x0, eps, output, log_var)
  if kind == "eps":
    x0, eps = (z - sigma * output) / alpha, output
  else:
    x0, eps = output, (z - alpha * output) / sigma
  return Prediction(x0, eps, to_v(x0, eps, log_snr), log_var)
