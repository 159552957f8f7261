"""A stage's network with its weights, as a Denoiser."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lumiere_jax.diffusion.prediction import Denoiser, Prediction, predict
from lumiere_jax.models import lora
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.typing import Cond, FlatParams


def cast_kernels(params: FlatParams, dtype: str) -> FlatParams:
  """Weights, or their shapes, with kernels in the dtype of the computation.

  It would round them to it anyway, so nothing changes but the memory. All else
  (scales and biases of norms, say, that compute in float32) is as it came.
  """

  def cast(path: str, leaf: Any) -> Any:
    if not path.endswith("/kernel"):
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=jnp.dtype(dtype))
    return leaf.astype(dtype)

  return {path: cast(path, leaf) for path, leaf in params.items()}


def lay_out_weights(
  config: UNetConfig, params: FlatParams, mesh: Mesh
) -> FlatParams:
  """Weights cut up over a mesh, as sampling on it holds them."""
  params = cast_kernels(params, config.dtype)
  return multihost.lay_out(params, shardings(params, mesh))


def network_denoiser(
  config: StageConfig,
  params: FlatParams,
  *,
  bypass_temporal: bool = False,
  adapter_scale: float = 1.0,
) -> Denoiser:
  """The network with its weights, and adapters among them, as a Denoiser.

  Of 6 output channels the last three are v in [-1, 1] of a learned variance,
  which says where in its range the log-variance lies (IF).
  """
  network = UNet(config.model)
  embedding = config.embedding_schedule
  weights, adapter = lora.split_params(params)
  variables = {"params": unflatten(weights)}

  def denoise(z: jax.Array, log_snr: jax.Array, cond: Cond) -> Prediction:
    with lora.applied(adapter, adapter_scale):
      output = network.apply(
        variables,
        z,
        embedding.time(log_snr),
        cond,
        bypass_temporal=bypass_temporal,
      )
    log_var = None
    if config.model.out_channels == 2 * z.shape[-1]:
      output, v = jnp.split(output, 2, axis=-1)
      log_var = (v.astype(jnp.float32) + 1) / 2
    return predict(config.diffusion.prediction, output, z, log_snr, log_var)

  return denoise
