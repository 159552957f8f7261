"""The U-Net: image model, Space-Time U-Net and super-resolution model.

`UNetConfig` selects which. Submodule names are an API (freezing, inflation,
sharding, import and export go by path); a golden test pins them.
"""

from collections.abc import Callable
import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lumiere_jax.errors import UserError
from lumiere_jax.models import blocks, temporal
from lumiere_jax.models.config import REMAT, UNetConfig
from lumiere_jax.models.params import flatten
from lumiere_jax.models.sharded_layers import Conv, Dense
from lumiere_jax.parallel.sharding import VIDEO, constrain
from lumiere_jax.typing import Cond, FlatParams, PerSample, Video


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
    c = self.config
    inflated = c.temporal is not None and not bypass_temporal
    c.check_video(z.shape[1] if inflated else c.temporal_factor, *z.shape[2:4])
    last = len(c.channels) - 1
    cond = self._mask_padding(cond)
    emb = self._embedding(time, cond)
    text = Dense(c.text_channels, dtype=self._dtype, name="text_proj")(
      cond.text
    )

    def block(x, name, level):
      def body(self, x):
        def spatial(self, x):
          kind = c.attention[level]
          x = self._res_block(c.channels[level], name)(x, emb)
          return self._attend(x, f"{name}_attention", kind, text, cond)

        x = self._in_chunks(spatial, x)
        x = self._inflate(x, name, level, text, cond) if inflated else x
        return constrain(x, VIDEO)

      return self._remat(body, level)(self, x)

    def resample(x, name, kind, level):
      def body(self, x):
        spatial = lambda self, x: self._res_block(
          c.channels[level], name, kind
        )(x, emb)
        x = self._in_chunks(spatial, x)
        # Up-sampling from level k + 1 undoes down-sampling from level k.
        step = level if kind == "down" else level - 1
        if inflated and c.temporal.resample[step]:
          x = temporal.TemporalResample(
            kind, self._dtype, name=f"temporal_{name}"
          )(x)
        return constrain(x, VIDEO)

      return self._remat(body, level)(self, x)

    def middle(self, x):
      x = self._middle(x, emb, text, cond)
      x = self._inflate(x, "mid", last, text, cond) if inflated else x
      return constrain(x, VIDEO)

    x = self._stem(z, cond)
    skips = [x]
    for level in range(last + 1):
      for i in range(c.num_res_blocks[level]):
        x = block(x, f"down_{level}_{i}", level)
        skips.append(x)
      if level < last:
        x = resample(x, f"down_{level}_resample", "down", level)
        skips.append(x)

    x = self._remat(middle, last)(self, x)

    for level in reversed(range(last + 1)):
      for i in range(c.num_res_blocks[level] + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, f"up_{level}_{i}", level)
      if level > 0:
        x = resample(x, f"up_{level}_resample", "up", level)

    x = blocks.GroupNorm(c.norm_groups, c.activation, name="head_norm")(x)
    out = c.out_channels * c.patch**2
    x = self._conv(out, "head", nn.initializers.zeros)(x)
    return constrain(blocks.to_pixels(x.astype(jnp.float32), c.patch), VIDEO)

  @property
  def _dtype(self) -> jnp.dtype:
    return jnp.dtype(self.config.dtype)

  def _mask_padding(self, cond: Cond) -> Cond:
    """Sets padding to zero; drops the mask if the model was trained without."""
    if not self.config.mask_text:
      return cond.replace(text_mask=None)
    if cond.text_mask is None:
      return cond
    # Attention gives padding a weight of zero, but 0 * nan is nan, and if all
    # tokens are padding the weights are uniform.
    text = jnp.where(cond.text_mask[..., None], cond.text, 0.0)
    return cond.replace(text=text)

  def _remat(self, body: Callable, level: int) -> Callable:
    """`body(self, x)`, with intermediates recomputed as `config.remat` says."""
    kind = self.config.remat[level] if self.config.remat else "none"
    return body if kind == "none" else nn.remat(body, policy=REMAT[kind])

  def _in_chunks(self, spatial: Callable, x: Video) -> Video:
    """`spatial(self, x)`, of at most `config.frame_chunk` frames at a time."""
    most, frames = self.config.frame_chunk, x.shape[1]
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

  def _conv(self, features: int, name: str, init=None, bias=True) -> nn.Conv:
    return Conv(
      features,
      (3, 3),
      use_bias=bias,
      dtype=self._dtype,
      kernel_init=init or nn.initializers.lecun_normal(),
      name=name,
    )

  def _embedding(self, time: PerSample, cond: Cond) -> Array:
    """Time, pooled text and, for super-resolution, the noise level: (b, e)."""
    c = self.config
    width = c.channels[-1]
    embed = lambda name: blocks.TimeEmbedding(
      c.channels[0], width, c.activation, self._dtype, name=name
    )
    pool = blocks.TextPooling(
      c.pool_heads, width, self._dtype, name="text_pool"
    )
    emb = embed("time_embed")(time) + pool(cond.text, cond.text_mask)
    if c.noise_conditioned:
      emb = emb + embed("noise_embed")(cond.noise_level)
    if c.activate_embedding_once:
      emb = blocks.ACTIVATIONS[c.activation](emb)
    return emb.astype(self._dtype)

  def _stem(self, z: Video, cond: Cond) -> Video:
    """First convolution, plus `cond_in` of the conditioning channels.

    The paper widens the first convolution from 3 to 7 channels (section 4.2).
    Adding a zero-initialised convolution of the 4 new channels is the same
    function, but keeps the shape of the image model's kernel and can be trained
    separately.
    """
    c = self.config
    extra = c.in_channels - 3
    x = constrain(z, VIDEO).astype(self._dtype)
    if extra:
      x = jnp.concatenate(
        [x, cond.frames[..., :extra].astype(self._dtype)], axis=-1
      )
    x = self._conv(c.channels[0], "stem")(blocks.to_patches(x, c.patch))
    if c.cond_channels:
      given = cond.frames[..., extra:].astype(self._dtype)
      given = blocks.to_patches(given, c.patch)
      zeros = nn.initializers.zeros
      x = x + self._conv(c.channels[0], "cond_in", zeros, bias=False)(given)
    return x

  def _middle(self, x: Video, emb: Array, text: Array, cond: Cond) -> Video:
    """Residual block, attention (at least to the text), residual block."""
    c = self.config
    x = self._res_block(c.channels[-1], "mid_0")(x, emb)
    kind = "self" if c.attention[-1] == "self" else "cross"
    x = self._attend(x, "mid_attention", kind, text, cond)
    return self._res_block(c.channels[-1], "mid_1")(x, emb)

  def _res_block(
    self, channels: int, name: str, resample: str = "none"
  ) -> blocks.ResBlock:
    c = self.config
    return blocks.ResBlock(
      channels,
      c.norm_groups,
      c.activation,
      resample,
      not c.activate_embedding_once,
      c.skip_scale,
      self._dtype,
      name=name,
    )

  def _attend(
    self, x: Video, name: str, kind: str, text: Array, cond: Cond
  ) -> Video:
    if kind == "none":
      return x
    c = self.config
    return blocks.TextAttention(
      c.head_dim,
      c.norm_groups,
      kind == "self",
      c.attention_kernel,
      self._dtype,
      name=name,
    )(x, text, cond.text_mask)

  def _inflate(
    self, x: Video, name: str, level: int, text: Array, cond: Cond
  ) -> Video:
    c, t = self.config, self.config.temporal
    if level < len(c.channels) - 1:
      return temporal.ConvInflation(
        c.norm_groups, t.activation, self._dtype, name=f"temporal_{name}"
      )(x)
    if not t.max_distance:
      raise UserError(
        "config.model.temporal.max_distance=0",
        "depends on the length of the training clips, which the network does "
        "not know",
        "give the number, or call `UNetConfig.for_clips`",
      )
    return temporal.AttentionInflation(
      t.num_attentions,
      t.head_dim,
      c.norm_groups,
      t.max_distance,
      c.attention_kernel,
      self._dtype,
      name=f"temporal_{name}",
    )(x, *((text, cond.text_mask) if t.text else ()))
