"""The one U-Net: image model, Space-Time U-Net and super-resolution model.

Which of them it is, is data in `UNetConfig`. Its submodule names are an API
(freezing, inflation, sharding, import and export go by path); a golden test
pins them.
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
from lumiere_jax.models.attention import KERNELS
from lumiere_jax.models.inflate import flatten
from lumiere_jax.models.layers import Conv, Dense
from lumiere_jax.parallel.sharding import VIDEO, constrain
from lumiere_jax.typing import (
  Cond,
  FlatParams,
  PerSample,
  UserError,
  Video,
  suggest,
)

ATTENTION = ("none", "cross", "self")
LOW_RESOLUTION = ("half_pixel", "corners")
REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
  "attention": jax.checkpoint_policies.save_only_these_names("attention"),
  "products": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names("convolution"),
  ),
}
"""What the backward pass keeps of a block, instead of computing it again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemporalConfig:
  """What inflation adds.

  Attributes:
    resample: for each spatial resampling (one fewer than levels, finest
      first), whether time is resampled by 2 with it.
    num_attentions: temporal attentions in every attention inflation block.
    head_dim: width of their heads.
    max_distance: offsets in coarsest frames beyond it share a position bias;
      0: the longest there are in the clips trained on, see
      `UNetConfig.for_clips`. No other entries of the bias would ever train.
    activation: of the convolutional inflation blocks.
    text: whether temporal attention sees the text too, see
      `temporal.TemporalAttention`.
  """

  resample: tuple[bool, ...]
  num_attentions: int = 2
  head_dim: int = 64
  max_distance: int = 0
  activation: str = "silu"
  text: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
  """The shape of a U-Net; per-level tuples go from finest to coarsest.

  Attributes:
    channels: width of each level.
    num_res_blocks: residual blocks of each level in the encoder; the decoder
      has one more.
    attention: of each level: 'none', 'cross' (to the text) or 'self' (to text
      and pixels). The mid block attends as the coarsest level does, but always
      to the text at least.
    text_dim: width of the text encoder's output.
    text_channels: width it is projected to for attention.
    pool_heads: heads of the attention pooling of the text.
    head_dim: width of the attention heads.
    in_channels: 3, or 6 where a low-resolution video is concatenated.
    low_resolution: how the low-resolution video was enlarged when the network
      was trained: 'half_pixel' (torch's `align_corners=False`: nothing moves)
      or 'corners' (`align_corners=True`: IF-II). Bilinear either way.
    cond_channels: extra conditioning channels that enter through `cond_in`:
      4 for (masked video, mask), else 0.
    out_channels: 3, or 6 for a learned variance.
    norm_groups: groups of the group norms.
    activation: 'gelu' or 'silu'.
    noise_embedding: how the network is given a log-SNR: as its time on the
      schedule of this name, 'cosine', 'linear', 'squaredcos_cap_v2' (IF) or
      'log_snr'. Fixed when the spatial layers were first trained; all that
      starts from them must have the same.
    noise_embedding_shift: of that schedule; other than 0 only where a network
      of format 1 was trained on a shifted one.
    noise_conditioned: embeds `Cond.noise_level` (super-resolution).
    activate_embedding_once: IF-II's "efficient activation".
    skip_scale: factor on every residual sum; IF-II: 0.7071.
    mask_text: True: padding counts for nothing, neither what it holds nor how
      much there is. False: it counts as tokens do, in attention, in pooling
      and in the norms of the text (IF).
    patch: side of the squares of pixels that make up one position of the finest
      level, as channels (space to depth); 1: each pixel is one. A small model
      is wide where a processor is fast, and still sees every pixel.
    frame_chunk: frames that spatial layers work on at once, one part of the
      clip after the other; 0 is all. No number changes, only memory and time.
    temporal: None for an image model.
    dtype: of the computation; parameters are float32, norms and softmax too.
    attention_kernel: one of `attention.KERNELS`.
    remat: of each level, what the backward pass keeps of its blocks: 'none'
      computes nothing again, 'full' keeps nothing, 'attention' the outputs of
      attention alone, 'products' those of convolutions and matrix products.
      () is 'none' everywhere. No number changes, only memory and time.
  """

  channels: tuple[int, ...]
  num_res_blocks: tuple[int, ...]
  attention: tuple[str, ...]
  text_dim: int
  text_channels: int
  pool_heads: int = 64
  head_dim: int = 64
  in_channels: int = 3
  low_resolution: str = "half_pixel"
  cond_channels: int = 0
  out_channels: int = 3
  norm_groups: int = 32
  activation: str = "gelu"
  noise_embedding: str = "cosine"
  noise_embedding_shift: float = 0.0
  noise_conditioned: bool = False
  activate_embedding_once: bool = False
  skip_scale: float = 1.0
  mask_text: bool = True
  patch: int = 1
  frame_chunk: int = 0
  temporal: TemporalConfig | None = None
  dtype: str = "float32"
  attention_kernel: str = "xla"
  remat: tuple[str, ...] = ()

  def __post_init__(self):
    for problem in self._problems():
      raise UserError(f"config.model: {problem}")

  def _problems(self):
    levels = len(self.channels)
    for name in ("num_res_blocks", "attention"):
      if (n := len(getattr(self, name))) != levels:
        yield f"{name} has {n} entries, channels has {levels}; give one a level"
    if self.remat and len(self.remat) != levels:
      yield (
        f"remat has {len(self.remat)} entries, channels has {levels}; give "
        "one a level, or none"
      )
    if self.frame_chunk < 0:
      yield f"frame_chunk={self.frame_chunk} must be at least 0; 0 is all"
    if self.patch < 1:
      yield f"patch={self.patch} must be at least 1; 1 is no patches"
    for name, known in (("attention", ATTENTION), ("remat", REMAT)):
      for kind in sorted(set(getattr(self, name)) - set(known)):
        yield f"{name} {kind!r} is not one of {', '.join(known)}"
    for width in (*self.channels, self.text_channels):
      if width % self.norm_groups:
        yield f"width {width} is no multiple of norm_groups={self.norm_groups}"
    heads = [
      c
      for c, a in zip(self.channels, self.attention, strict=True)
      if a != "none"
    ] + [self.channels[-1]]
    for width in heads:
      if width % self.head_dim:
        yield f"width {width} is no multiple of head_dim={self.head_dim}"
    if self.text_dim % self.pool_heads:
      yield (
        f"text_dim={self.text_dim} is no multiple of "
        f"pool_heads={self.pool_heads}"
      )
    if (kernel := self.attention_kernel) not in KERNELS:
      yield (
        f"attention_kernel={kernel!r} is not one of {', '.join(KERNELS)}"
        + suggest(kernel, KERNELS)
      )
    if (kind := self.low_resolution) not in LOW_RESOLUTION:
      yield (
        f"low_resolution={kind!r} is not one of {', '.join(LOW_RESOLUTION)}"
        + suggest(kind, LOW_RESOLUTION)
      )
    if self.activation not in blocks.ACTIVATIONS:
      yield f"activation {self.activation!r} is not gelu or silu"
    if self.temporal and len(self.temporal.resample) != levels - 1:
      yield (
        f"temporal.resample has {len(self.temporal.resample)} entries; "
        f"{levels} levels have {levels - 1} resamplings"
      )
    if self.temporal and self.temporal.max_distance < 0:
      yield (
        f"temporal.max_distance={self.temporal.max_distance} must be at least "
        "0; 0 is what the clips trained on have"
      )
    if self.temporal and self.channels[-1] % self.temporal.head_dim:
      yield (
        f"width {self.channels[-1]} is no multiple of "
        f"temporal.head_dim={self.temporal.head_dim}"
      )

  @property
  def temporal_factor(self) -> int:
    """Frames must be a multiple of this."""
    return 2 ** sum(self.temporal.resample) if self.temporal else 1

  @property
  def spatial_factor(self) -> int:
    """Height and width must be multiples of this."""
    return self.patch * 2 ** (len(self.channels) - 1)

  def for_clips(self, frames: int) -> "UNetConfig":
    """The config, with `temporal.max_distance` as a number.

    Args:
      frames: of the longest clip trained on. Of n coarsest frames, the first
        and the last are n - 1 apart.
    """
    if not self.temporal or self.temporal.max_distance:
      return self
    longest = max(frames // self.temporal_factor - 1, 1)
    temporal = dataclasses.replace(self.temporal, max_distance=longest)
    return dataclasses.replace(self, temporal=temporal)

  def check_video(self, frames: int, height: int, width: int) -> None:
    """Raises a UserError where a video of this size does not fit."""
    if frames % self.temporal_factor:
      low = frames - frames % self.temporal_factor
      raise UserError(
        f"num_frames={frames} is no multiple of {self.temporal_factor}, the "
        "model's down-sampling in time; take "
        + " or ".join(str(n) for n in (low, low + self.temporal_factor) if n)
      )
    for name, size in (("height", height), ("width", width)):
      if size % self.spatial_factor:
        raise UserError(
          f"{name}={size} is no multiple of {self.spatial_factor}, the "
          "model's down-sampling in space; take "
          f"{size + -size % self.spatial_factor}"
        )


def init_params(config: UNetConfig, key: jax.Array) -> FlatParams:
  """Freshly initialised leaves (or their shapes, under eval_shape)."""
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
  """Shape and dtype of every leaf by path, at no memory."""
  return jax.eval_shape(
    functools.partial(init_params, config), jax.random.key(0)
  )


class UNet(nn.Module):
  """Noisy video, time and conditioning in; eps, v or x0 out.

  With `config.temporal` None every frame is an image of its own. With it the
  same submodules stay and `temporal_*` appear beside them: after each spatial
  block a convolutional inflation block, at the coarsest level and in the
  middle temporal attention, after each spatial resampling a temporal one
  (Lumiere section 3.1).
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
      time: (b,) in [0, 1], that stands for the noise level; see
        `UNetConfig.noise_embedding`. 1 is pure noise.
      cond: see `Cond`; `frames` carries in_channels - 3 + cond_channels.
      bypass_temporal: leaves every temporal module out (images; ablation).

    Returns:
      (b, t, h, w, out_channels) float32.

    Raises:
      UserError: frames, height or width do not divide.
    """
    c = self.config
    inflated = c.temporal is not None and not bypass_temporal
    c.check_video(z.shape[1] if inflated else c.temporal_factor, *z.shape[2:4])
    last = len(c.channels) - 1
    cond = self._without_padding(cond)
    emb = self._embedding(time, cond)
    text = self._dense(c.text_channels, "text_proj")(cond.text)

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
          x = self._resample_time(x, name, kind)
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

  def _without_padding(self, cond: Cond) -> Cond:
    """Padding as zeros; or, where it counts as tokens do, no mask."""
    if not self.config.mask_text:
      return cond.replace(text_mask=None)
    if cond.text_mask is None:
      return cond
    # Attention gives it a weight of zero; a value that is not finite would
    # still show, and where all is padding the weights are even.
    text = jnp.where(cond.text_mask[..., None], cond.text, 0.0)
    return cond.replace(text=text)

  def _remat(self, body: Callable, level: int) -> Callable:
    """`body(self, x)`, forgetting what the backward pass may compute again."""
    kind = self.config.remat[level] if self.config.remat else "none"
    return body if kind == "none" else nn.remat(body, policy=REMAT[kind])

  def _in_chunks(self, spatial: Callable, x: Video) -> Video:
    """`spatial(self, x)`, which takes frames one by one, of some at a time."""
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

  def _resample_time(self, x: Video, name: str, kind: str) -> Video:
    return temporal.TemporalResample(
      kind, self._dtype, name=f"temporal_{name}"
    )(x)

  def _dense(self, features: int, name: str) -> nn.Dense:
    return Dense(features, dtype=self._dtype, name=name)

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
    """First convolution; conditioning channels join it through `cond_in`.

    The paper widens the first convolution from 3 to 7 channels (section 4.2).
    A second convolution of the 4 new ones, zero at first and added, is the same
    function, leaves the image model's kernel its shape, and can be trained
    by itself.
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
    """Block, attention (to the text at least), block."""
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
        "config.model.temporal.max_distance=0 stands for the clips trained on, "
        "of which a network by itself knows nothing; give the number, or take "
        "`UNetConfig.for_clips`"
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
