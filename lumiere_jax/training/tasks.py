"""What each stage adds to the one loop: its network, inputs and loss."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.loss import (
  diffusion_loss,
  draw,
  drop_captions,
  loss_per_sample,
)
from lumiere_jax.diffusion.process import Denoiser
from lumiere_jax.models.inflate import flatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.pipelines.conditioning import (
  low_resolution_frames,
  random_crops,
  shrink,
  to_float,
)
from lumiere_jax.pipelines.stage import network_denoiser
from lumiere_jax.training.config import Experiment
from lumiere_jax.typing import Cond, FlatParams, Video

Batch = Mapping[str, Array]
"""'video' uint8 (b t h w c), 'text' (b l e), 'text_mask' (b l)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A denoising task; super-resolution where the experiment upscales.

  Attributes:
    experiment: the stage.
    null_text: (l, e) what stands for "no caption".
    null_mask: (l,) its mask.
  """

  experiment: Experiment
  null_text: Float[Array, "l e"]
  null_mask: Array

  def init(self, key: jax.Array) -> FlatParams:
    """Freshly initialised weights (or their shapes, under eval_shape)."""
    model = self.experiment.model
    side = model.spatial_factor * 2
    frames = jnp.zeros(
      (
        1,
        model.temporal_factor,
        side,
        side,
        model.in_channels - 3 + model.cond_channels,
      )
    )
    cond = Cond(
      text=self.null_text[None],
      text_mask=self.null_mask[None],
      frames=frames,
      noise_level=jnp.zeros(1),
    )
    z = jnp.zeros((*frames.shape[:-1], 3))
    return flatten(UNet(model).init(key, z, jnp.zeros(1), cond)["params"])

  def inputs(self, batch: Batch, key: jax.Array) -> tuple[Video, Cond]:
    """Clean video in [-1, 1] and what the network is conditioned on."""
    experiment = self.experiment
    crop_key, level_key, noise_key = jax.random.split(key, 3)
    x0 = random_crops(
      crop_key,
      to_float(batch["video"]),
      experiment.data.crop,
      experiment.upscale,
    )
    cond = Cond(text=batch["text"], text_mask=batch["text_mask"])
    if experiment.upscale == 1:
      return x0, cond
    diffusion = experiment.diffusion
    level = diffusion.max_noise_level * jax.random.uniform(
      level_key, x0.shape[:1]
    )
    frames = low_resolution_frames(
      shrink(x0, experiment.upscale),
      x0.shape[2:4],
      diffusion.make_schedule(),
      level,
      jax.random.normal(noise_key, x0.shape),
    )
    return x0, cond.replace(frames=frames, noise_level=level)

  def loss(
    self, params: FlatParams, batch: Batch, key: jax.Array
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Training loss at random noise levels, captions dropped at random."""
    diffusion = self.experiment.diffusion
    input_key, drop_key, loss_key = jax.random.split(key, 3)
    x0, cond = self.inputs(batch, input_key)
    batch_size = x0.shape[0]
    cond = drop_captions(
      jax.random.split(drop_key, batch_size),
      cond,
      self.null_text,
      self.null_mask,
      diffusion.caption_dropout,
    )
    return diffusion_loss(
      self.denoiser(params),
      x0,
      cond,
      draw(loss_key, batch_size),
      schedule=diffusion.make_schedule(),
      kind=diffusion.prediction,
      weight=diffusion.loss_weight,
      gamma=diffusion.min_snr_gamma,
    )

  def held_out_loss(
    self, params: FlatParams, batch: Batch, *, bypass_temporal: bool = False
  ) -> Float[Array, "levels b"]:
    """Loss of each clip at each of `eval_levels` evenly spread noise levels.

    Noise, crops and augmentation are the same at every call.
    """
    experiment = self.experiment
    x0, cond = self.inputs(batch, jax.random.key(0))
    levels = experiment.train.eval_levels
    times = (jnp.arange(levels) + 0.5) / levels
    denoiser = self.denoiser(params, bypass_temporal=bypass_temporal)

    def at(level: tuple[Array, Array]) -> Float[Array, "b"]:
      time, key = level
      log_snr = experiment.diffusion.make_schedule().log_snr(time)
      return loss_per_sample(
        denoiser,
        x0,
        jax.random.normal(key, x0.shape),
        jnp.full(x0.shape[:1], log_snr),
        cond,
        experiment.diffusion.prediction,
      )

    return jax.lax.map(at, (times, jax.random.split(jax.random.key(1), levels)))

  def denoiser(
    self, params: FlatParams, *, bypass_temporal: bool = False
  ) -> Denoiser:
    """The stage's network as a Denoiser."""
    return network_denoiser(
      self.experiment.sampling, params, bypass_temporal=bypass_temporal
    )
