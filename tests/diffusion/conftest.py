"""What the tests of this room share: conditioning and an exact denoiser."""

from flax import struct
import jax
import jax.numpy as jnp
import pytest

from lumiere_jax.diffusion.prediction import Prediction
from lumiere_jax.typing import Cond


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
def gaussian():
  """Makes the exact denoiser of N(mean, std^2)."""
  return Gaussian


@pytest.fixture
def cond():
  """Conditioning of a batch of the given size, with frames if asked."""

  def make(batch, frames=None, seed=0):
    text = jax.random.normal(jax.random.key(seed), (batch, 3, 2))
    return Cond(text=text, frames=frames)

  return make
