"""The U-Net: image model, Space-Time U-Net and super-resolution model.

`UNetConfig` selects which. Submodule names are an API (freezing, inflation,
sharding, import and export go by path); a golden test pins them.
"""

from collections.abc import Callable
import dataclasses
import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lumiere_jax.models import blocks, temporal
from lumiere_jax.models.config import REMAT, ExecutionConfig, UNetConfig
from lumiere_jax.models.params import flatten
from lumiere_jax.models.sharded_layers import Conv, Dense
from lumiere_jax.parallel.sharding import VIDEO, constrain
from lumiere_jax.typing import Cond, FlatParams, PerSample, Video

_ZEROS, _LECUN = nn.initializers.zeros, nn.initializers.lecun_normal()


def init_params(config: UNetConfig, key: jax.Array) -> FlatParams:
  """Freshly initialised leaves."""
  side = config.spatial_factor * 2
  frames = (1, config.temporal_factor, side, side)
  extra = config.in_channels - 3 + config.cond_channels
  cond = Cond(
    text=jnp.zeros((1, 1, config.text_dim)),
    frames=jnp.zeros((*frames, extra)),
    noise_level=jnp.zeros(1),
  )
  z = jnp.zeros((*frames, 3))
  return flatten(UNet(config).init(key, z, jnp.zeros(1), cond)["params"])


@functools.cache
def abstract_params(config: UNetConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Shape and dtype of every leaf by path, without allocating memory."""
  return jax.eval_shape(
    functools.partial(init_params, config), jax.random.key(0)
  )


class UNet(nn.Module):
  """Predicts eps, v or x0 from a noisy video, its time and conditioning.

  Without `config.temporal` every frame is an independent image. With it, the
  same submodules are joined by `temporal_*`: a convolutional inflation block
  after each spatial block, temporal attention at the coarsest level and in the
  middle, and temporal resampling after spatial resampling (Lumiere section
  3.1).
  """

  config: UNetConfig
  execution: ExecutionConfig = ExecutionConfig()

  @nn.compact
  def __call__(
    self,
    z: Video,
    time: PerSample,
    cond: Cond,
    *,
    bypass_temporal: bool = False,
  ) -> Video:
    """Runs the network.

    Args:
      z: (b, t, h, w, 3) noisy video.
      time: (b,) in [0, 1], the noise level as a time of
        `UNetConfig.noise_embedding`; 1 is pure noise.
      cond: see `Cond`; `frames` has in_channels - 3 + cond_channels channels.
      bypass_temporal: skips every temporal module (for images and ablations).

    Returns:
      (b, t, h, w, out_channels) float32.
    """
    c, run = self.config, self.execution
    added = None if bypass_temporal else c.temporal
    c.check_video(z.shape[1] if added else c.temporal_factor, *z.shape[2:4])
    run.check_levels(len(c.channels))
    last = len(c.channels) - 1
    cond = self._mask_padding(cond)
    emb = self._embedding(time, cond)
    text = Dense(c.text_channels, dtype=run.dtype, name="text_proj")(cond.text)

    def res_block(x, name, level, resample="none"):
      return blocks.ResBlock(c, run, c.channels[level], resample, name=name)(
        x, emb
      )

    def attend(x, name, kind):
      if kind == "none":
        return x
      return blocks.TextAttention(c, run, kind == "self", name=name)(
        x, text, cond.text_mask
      )

    def inflate(x, name, level):
      if not added:
        return x
      kind = (
        temporal.ConvInflation if level < last else temporal.AttentionInflation
      )
      words = (text, cond.text_mask) if level == last and added.text else ()
      return kind(added, c.norm_groups, run, name=f"temporal_{name}")(x, *words)

    def block(x, name, level):
      def body(self, x):
        def spatial(self, x):
          x = res_block(x, name, level)
          return attend(x, f"{name}_attention", c.attention[level])

        x = inflate(self._in_chunks(spatial, x), name, level)
        return constrain(x, VIDEO)

      return self._remat(body, level)(self, x)

    def resample(x, kind, level):
      name = f"{kind}_{level}_resample"

      def body(self, x):
        x = self._in_chunks(lambda self, x: res_block(x, name, level, kind), x)
        # Up-sampling from level k + 1 undoes down-sampling from level k.
        if added and added.resample[level if kind == "down" else level - 1]:
          x = temporal.TemporalResample(
            kind, run.dtype, name=f"temporal_{name}"
          )(x)
        return constrain(x, VIDEO)

      return self._remat(body, level)(self, x)

    def middle(self, x):
      x = res_block(x, "mid_0", last)
      kind = "self" if c.attention[-1] == "self" else "cross"
      x = res_block(attend(x, "mid_attention", kind), "mid_1", last)
      return constrain(inflate(x, "mid", last), VIDEO)

    x = self._stem(z, cond)
    skips = [x]
    for level in range(last + 1):
      for i in range(c.num_res_blocks[level]):
        x = block(x, f"down_{level}_{i}", level)
        skips.append(x)
      if level < last:
        x = resample(x, "down", level)
        skips.append(x)

    x = self._remat(middle, last)(self, x)

    for level in reversed(range(last + 1)):
      for i in range(c.num_res_blocks[level] + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, f"up_{level}_{i}", level)
      if level > 0:
        x = resample(x, "up", level)

    x = blocks.GroupNorm(c.norm_groups, c.activation, name="head_norm")(x)
    x = self._conv(c.out_channels * c.patch**2, "head", _ZEROS)(x)
    return constrain(blocks.to_pixels(x.astype(jnp.float32), c.patch), VIDEO)

  def _mask_padding(self, cond: Cond) -> Cond:
    """Sets padding to zero; drops the mask if the model was trained without."""
    if not self.config.mask_text:
      return dataclasses.replace(cond, text_mask=None)
    if cond.text_mask is None:
      return cond
    # Attention gives padding a weight of zero, but 0 * nan is nan, and if all
    # tokens are padding the weights are uniform.
    text = jnp.where(cond.text_mask[..., None], cond.text, 0.0)
    return dataclasses.replace(cond, text=text)

  def _remat(self, body: Callable, level: int) -> Callable:
    """`body(self, x)`, with intermediates recomputed as `remat` says."""
    kind = self.execution.remat[level] if self.execution.remat else "none"
    return body if kind == "none" else nn.remat(body, policy=REMAT[kind])

  def _in_chunks(self, spatial: Callable, x: Video) -> Video:
    """`spatial(self, x)`, of at most `frame_chunk` frames at a time."""
    most, frames = self.execution.frame_chunk, x.shape[1]
    if not 0 < most < frames or self.is_initializing():
      return spatial(self, x)
    size = max(n for n in range(1, most + 1) if frames % n == 0)
    chunks = einops.rearrange(x, "b (k t) h w c -> k b t h w c", t=size)
    scan = nn.scan(
      lambda self, carry, chunk: (carry, spatial(self, chunk)),
      variable_broadcast="params",
      split_rngs={"params": False},
    )
    _, chunks = scan(self, (), chunks)
    return einops.rearrange(chunks, "k b t h w c -> b (k t) h w c")

  def _conv(self, features: int, name: str, init=_LECUN, bias=True) -> nn.Conv:
    return Conv(
      features,
      (3, 3),
      use_bias=bias,
      dtype=self.execution.dtype,
      kernel_init=init,
      name=name,
    )

  def _embedding(self, time: PerSample, cond: Cond) -> Array:
    """Time, pooled text and, for super-resolution, the noise level: (b, e)."""
    c, run = self.config, self.execution
    pool = blocks.TextPooling(c, run, name="text_pool")
    emb = blocks.TimeEmbedding(c, run, name="time_embed")(time)
    emb = emb + pool(cond.text, cond.text_mask)
    if c.noise_conditioned:
      assert cond.noise_level is not None
      level = blocks.TimeEmbedding(c, run, name="noise_embed")
      emb = emb + level(cond.noise_level)
    if c.activate_embedding_once:
      emb = blocks.ACTIVATIONS[c.activation](emb)
    return emb.astype(run.dtype)

  def _stem(self, z: Video, cond: Cond) -> Video:
    """First convolution, plus `cond_in` of the conditioning channels.

    The paper widens the first convolution from 3 to 7 channels (section 4.2).
    Adding a zero-initialised convolution of the 4 new channels is the same
    function, but keeps the shape of the image model's kernel and can be trained
    separately.
    """
    c, width = self.config, self.config.channels[0]
    extra = c.in_channels - 3
    x = constrain(z, VIDEO).astype(self.execution.dtype)
    given = x[..., :0] if cond.frames is None else cond.frames.astype(x.dtype)
    if extra:
      x = jnp.concatenate([x, given[..., :extra]], axis=-1)
    x = self._conv(width, "stem")(blocks.to_patches(x, c.patch))
    if c.cond_channels:
      given = blocks.to_patches(given[..., extra:], c.patch)
      x = x + self._conv(width, "cond_in", _ZEROS, bias=False)(given)
    return x
