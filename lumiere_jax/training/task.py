"""A stage's denoising task: network, inputs and loss."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from lumiere_jax.diffusion.loss import (
  Draws,
  diffusion_loss,
  draw,
  drop_captions,
  loss_per_sample,
)
from lumiere_jax.diffusion.noise import Keys
from lumiere_jax.diffusion.noise_levels import evaluation_bins
from lumiere_jax.diffusion.prediction import Denoiser
from lumiere_jax.diffusion.schedules import make_schedule
from lumiere_jax.models import t5
from lumiere_jax.models.t5 import T5Config, T5Encoder
from lumiere_jax.models.unet import init_params
from lumiere_jax.parallel.sharding import VIDEO, WHOLE_VIDEO, constrain
from lumiere_jax.stages.conditioning import (
  low_resolution_frames,
  masked_frames,
  noise_like,
  random_crops,
  shrink,
  to_float,
)
from lumiere_jax.stages.denoiser import network_denoiser
from lumiere_jax.training.config import Experiment
from lumiere_jax.typing import Cond, FlatParams, Video

Batch = Mapping[str, Array]
"""'video' uint8 (b t h w c), 'text' (b l e), 'text_mask' (b l), and for
conditional models 'mask' uint8 (b t h w 1), 1 where pixels are given. If the
text encoder trains, 'tokens' (b l) replace 'text'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """The denoising task of a stage.

  Super-resolution if the experiment upscales, conditional if the model has
  conditioning channels. A batch of one-frame clips bypasses the temporal layers
  of a video model.

  Attributes:
    experiment: the stage.
    null_text: (l, e) features of "no caption".
    null_mask: (l,) its mask.
    text_encoder: the encoder that trains too; None: text comes encoded.
  """

  experiment: Experiment
  null_text: Float[Array, "l e"]
  null_mask: Array
  text_encoder: T5Config | None = None

  def init(self, key: jax.Array) -> FlatParams:
    """Freshly initialised weights (or their shapes, under eval_shape)."""
    weights = init_params(self.experiment.network, key)
    if self.text_encoder:
      weights |= t5.prefix_params(t5.init_params(self.text_encoder))
    return weights

  def draw(self, batch: Batch, key: jax.Array) -> Draws:
    """The random draws for the loss of a batch."""
    return draw(key, len(batch["video"]))

  def encode(self, params: FlatParams, batch: Batch) -> Batch:
    """Encodes the captions of the batch if the text encoder trains."""
    if not self.text_encoder:
      return batch
    encoder, _ = t5.split_params(params)
    text: Any = T5Encoder(self.text_encoder).apply(
      {"params": encoder}, batch["tokens"], batch["text_mask"]
    )
    return {**batch, "text": text}

  def inputs(self, batch: Batch, keys: Keys) -> tuple[Video, Cond]:
    """Clean video in [-1, 1] and what the network is conditioned on.

    The keys (b,) are for crops, augmentation and noise.
    """
    experiment = self.experiment
    crop_keys, level_keys, noise_keys = _split(keys, 3)
    video = batch["video"]
    size = video.shape[2], video.shape[3]
    crops = random_crops(
      crop_keys, size, experiment.data.crop, experiment.upscale
    )
    cut = crops.cut if crops else lambda x: x
    x0 = to_float(cut(video))
    frames, level = [], None
    if experiment.upscale > 1:
      highest = experiment.diffusion.max_noise_level
      level = highest * jax.vmap(jax.random.uniform)(level_keys)
      # Replicated over the devices that share the clip: it is small, and each
      # high-resolution row needs two of its rows.
      low = shrink(to_float(constrain(video, WHOLE_VIDEO)), experiment.upscale)
      frames.append(
        low_resolution_frames(
          constrain(low, WHOLE_VIDEO),
          size,
          experiment.model.low_resolution,
          experiment.sampling.embedding_schedule,
          level,
          noise_like(x0, noise_keys),
          crops,
        )
      )
    if experiment.model.cond_channels:
      mask = cut(batch["mask"]).astype(x0.dtype)
      frames.append(masked_frames(x0, mask))
    shard = lambda video: constrain(video, VIDEO)
    return shard(x0), Cond(
      text=batch["text"],
      text_mask=batch["text_mask"],
      frames=shard(jnp.concatenate(frames, axis=-1)) if frames else None,
      noise_level=level,
    )

  def loss(
    self, params: FlatParams, batch: Batch, draws: Draws
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Loss of a (micro-)batch at random noise levels, some captions dropped."""
    diffusion = self.experiment.diffusion
    input_keys, drop_keys, loss_keys = _split(draws.keys, 3)
    x0, cond = self.inputs(self.encode(params, batch), input_keys)
    cond = drop_captions(
      drop_keys, cond, self.null_text, self.null_mask, diffusion.caption_dropout
    )
    return diffusion_loss(
      self.denoiser(params, bypass_temporal=self.is_image_batch(batch)),
      x0,
      cond,
      dataclasses.replace(draws, keys=loss_keys),
      noise=diffusion.make_noise(),
      schedule=make_schedule(diffusion.schedule),
      kind=diffusion.prediction,
      weight=diffusion.loss_weight,
      gamma=diffusion.min_snr_gamma,
    )

  def held_out_loss(
    self, params: FlatParams, batch: Batch, *, bypass_temporal: bool = False
  ) -> Float[Array, "bins b"]:
    """Loss of each clip at one noise level in each of the `evaluation_bins`.

    Noise levels, noise, crops and augmentation are the same at every call; the
    clips of a batch are spread over a bin by the training distribution.
    """
    experiment = self.experiment
    x0, cond = self.held_out_inputs(self.encode(params, batch))
    edges = jnp.asarray(self.evaluation_bins, jnp.float32)
    noise = experiment.diffusion.make_noise()
    denoiser = self.denoiser(params, bypass_temporal=bypass_temporal)
    # Multiples of the golden ratio spread any number of clips evenly.
    quantiles = (jnp.arange(len(x0)) + 0.5) * (math.sqrt(5) - 1) / 2 % 1.0

    def in_bin(args: tuple[Array, Array, Array]) -> Float[Array, "b"]:
      low, high, key = args
      return loss_per_sample(
        denoiser,
        x0,
        jax.random.normal(key, x0.shape),
        noise.log_snr(low + (high - low) * quantiles),
        cond,
        experiment.diffusion.prediction,
      )

    keys = jax.random.split(jax.random.key(1), len(edges) - 1)
    return jax.lax.map(in_bin, (edges[:-1], edges[1:], keys))

  @property
  def evaluation_log_snrs(self) -> list[float]:
    """The log-SNR at the middle of each bin, from clean to noisy."""
    edges = self.evaluation_bins
    centers = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)
    levels = self.experiment.diffusion.make_noise().log_snr(centers)
    return [round(float(level), 2) for level in levels]

  @property
  def evaluation_bins(self) -> np.ndarray:
    """Edges of the held-out loss's noise-level bins, as quantiles."""
    return evaluation_bins(
      self.experiment.diffusion.make_noise(), self.experiment.train.eval_levels
    )

  def held_out_inputs(self, batch: Batch) -> tuple[Video, Cond]:
    """`inputs` with the same crops and augmentation at every call."""
    return self.inputs(batch, self.draw(batch, jax.random.key(0)).keys)

  def is_image_batch(self, batch: Batch) -> bool:
    """Whether it is a batch of images for a video model (joint training)."""
    return bool(self.experiment.model.temporal) and batch["video"].shape[1] == 1

  def denoiser(
    self, params: FlatParams, *, bypass_temporal: bool = False
  ) -> Denoiser:
    """The stage's network as a Denoiser."""
    return network_denoiser(
      self.experiment.sampling,
      params,
      bypass_temporal=bypass_temporal,
      adapter_scale=self.experiment.lora.scale,
    )


def _split(keys: Keys, parts: int) -> list[Keys]:
  """Independent keys for each sample and each purpose."""
  split = jax.vmap(lambda key: jax.random.split(key, parts))(keys)
  return [split[:, part] for part in range(parts)]
