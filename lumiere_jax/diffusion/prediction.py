"""The forward process, and the conversion between prediction types."""

from typing import Protocol, runtime_checkable

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lumiere_jax.diffusion.schedules import alpha_sigma
from lumiere_jax.errors import check_choice
from lumiere_jax.typing import Cond, PerSample, Video, typechecked

KINDS = ("eps", "v", "x0")
"""Prediction types of networks, and spaces of losses."""


@struct.dataclass
class Prediction:
  """A prediction as x0, eps and v, each (b, t, h, w, c) float32.

  Each follows from any other one and z = alpha x0 + sigma eps.

  Attributes:
    x0: the clean video.
    eps: the noise.
    v: alpha eps - sigma x0 (Salimans and Ho; Imagen Video).
    log_var: the learned log-variance of a sampling step, relative to its range:
      0 is the posterior's (the smallest), 1 the forward step's (Improved DDPM,
      eq. 15). None: the model has none.
  """

  x0: Video
  eps: Video
  v: Video
  log_var: Video | None = None


@runtime_checkable
class Denoiser(Protocol):
  """A network, or a wrapper such as guidance, thresholding and MultiDiffusion.

  Wrappers may fold windows into the batch, ordered by window, then by sample. A
  denoiser that holds per-sample values repeats them in that order.
  """

  def __call__(self, z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    """Predicts from noisy videos `z`, their log-SNR and the conditioning."""
    ...


def expand(values: PerSample) -> Float[Array, "b 1 1 1 1"]:
  """Per-sample values in a shape that broadcasts against videos."""
  return values.reshape(-1, 1, 1, 1, 1)


def paired_masks(
  mask: Bool[Array, "b l"] | None,
  other: Bool[Array, "*b l"] | None,
  text: Float[Array, "b l e"],
) -> tuple[Array, Array] | None:
  """Two masks of texts shaped as `text`, or None if all tokens are real."""
  if mask is None and other is None:
    return None
  ones = jnp.ones(text.shape[:2], bool)
  return ones if mask is None else mask, ones if other is None else other


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
  """Converts a network's output to a prediction, in float32.

  The output is of any float type and of a kind in `KINDS`; log_snr is finite.
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
