"""The network of a stage with its weights, as a `Denoiser`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lumiere_jax.diffusion.prediction import Denoiser, Prediction, predict
from lumiere_jax.models import lora
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.parallel import multihost
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.typing import Cond, FlatParams


def cast_kernels(params: FlatParams, dtype: str) -> FlatParams:
  """Casts kernels, or their shapes, to the dtype of the computation.

  The computation rounds kernels to it anyway, so this only saves memory. Other
  leaves, such as those of norms, which compute in float32, are not changed.
  """

  def cast(path: str, leaf: Any) -> Any:
    if not path.endswith("/kernel"):
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=jnp.dtype(dtype))
    return leaf.astype(dtype)

  return {path: cast(path, leaf) for path, leaf in params.items()}


def lay_out_weights(dtype: str, params: FlatParams, mesh: Mesh) -> FlatParams:
  """Casts weights and shards them over a mesh, for sampling."""
  params = cast_kernels(params, dtype)
  return multihost.lay_out(params, shardings(params, mesh))


def network_denoiser(
  config: StageConfig,
  params: FlatParams,
  *,
  bypass_temporal: bool = False,
  adapter_scale: float = 1.0,
) -> Denoiser:
  """The network with its weights and adapters as a `Denoiser`.

  With 6 output channels, the last three are v in [-1, 1] of a learned variance
  (IF), the position of the log-variance in its range.
  """
  network = UNet(config.model, config.execution)
  embedding = config.embedding_schedule
  weights, adapter = lora.split_params(params)
  variables = {"params": unflatten(weights)}

  def denoise(z: jax.Array, log_snr: jax.Array, cond: Cond) -> Prediction:
    with lora.applied(adapter, adapter_scale):
      output: Any = network.apply(
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
