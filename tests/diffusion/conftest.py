"""Shared conditioning, noise scales and an exact denoiser."""

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.prediction import Prediction
from lumiere_jax.typing import Cond


def scales(log_snr):
  """alpha, sigma in float64, by the definition of log-SNR."""
  noise = np.exp(-np.float64(log_snr))
  return np.sqrt(1 / (1 + noise)), np.sqrt(noise / (1 + noise))


@struct.dataclass
class Gaussian:
  """The exact denoiser of data whose every value is N(mean, std^2)."""

  mean: float
  std: float

  def __call__(self, z, log_snr, cond):
    del cond
    snr = jnp.exp(log_snr).reshape(-1, 1, 1, 1, 1)
    alpha, sigma = jnp.sqrt(snr / (1 + snr)), jnp.sqrt(1 / (1 + snr))
    centred = (z - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
    x0 = self.mean + alpha * self.std**2 * centred
    eps = sigma * centred
    return Prediction(x0, eps, alpha * eps - sigma * x0)


@pytest.fixture
def cond():
  """Conditioning of a batch of the given size, with frames if asked."""

  def make(batch, frames=None, seed=0):
    text = jax.random.normal(jax.random.key(seed), (batch, 3, 2))
    return Cond(text=text, frames=frames)

  return make
