"""Spatial blocks of Imagen's base U-Net as published by DeepFloyd IF.

Imagen, arXiv 2205.11487, appendix F. Every block takes a video (b, t, h, w, c)
and processes each frame independently; an image is a video of one frame.
"""

from collections.abc import Callable
import functools

import einops
import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lumiere_jax.models.attention import attend
from lumiere_jax.models.config import ExecutionConfig, UNetConfig
from lumiere_jax.models.sharded_layers import Conv, Dense, DenseGeneral
from lumiere_jax.parallel.backend import materialised
from lumiere_jax.typing import PerSample, Video


def gelu(x: Array) -> Array:
  """Exact GELU, x times the normal distribution function at x.

  In float32 it uses erf, as torch does: the erfc of `nn.gelu` costs several
  times as much. In half precision 1 + erf loses all digits for negative x.
  """
  if x.dtype != jnp.float32:
    return nn.gelu(x, approximate=False)
  return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable] = {"gelu": gelu, "silu": nn.silu}
NORM_EPS = 1e-5


class GroupNorm(nn.Module):
  """Group normalisation with float32 statistics of each frame.

  Statistics never mix frames, so that a frame depends neither on the length of
  the video nor on the MultiDiffusion window.

  The variance of a channel is the difference of two means, computed in one
  pass over x. It loses precision where the mean is hundreds of times the
  standard deviation.

  Attributes:
    groups: number of groups of channels.
    activation: applied to the result, one of `ACTIVATIONS`; '' is none.
  """

  groups: int
  activation: str = ""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "... h w c"],
    mask: Bool[Array, "... h w"] | None = None,
    film: tuple[Array, Array] | None = None,
  ) -> Array:
    """Normalises x and keeps its dtype.

    Args:
      x: any float dtype.
      mask: False at positions to exclude from the statistics; None: excludes
        none. If all are excluded, mean and variance are 0.
      film: scale and shift (..., 1, 1, c), applied before the activation:
        norm(x) * (1 + scale) + shift.
    """
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    shift = self.param("bias", nn.initializers.zeros, (channels,))
    if film is not None:
      more, add = (part.astype(jnp.float32) for part in film)
      scale, shift = scale * (1 + more), shift * (1 + more) + add
    # Broadcast over frames, so that both are sharded as the frames are.
    zeros = jnp.zeros_like(x[..., :1, :1, :], jnp.float32)
    scale, shift = scale + zeros, shift + zeros
    return group_norm(x, scale, shift, mask, self.groups, self.activation)


_Channels = Float[Array, "... 1 1 c"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _group_norm(
  x: Float[Array, "... h w c"],
  scale: _Channels,
  shift: _Channels,
  mask: Bool[Array, "... h w"] | None,
  groups: int,
  activation: str,
) -> Array:
  """activation(norm(x) * scale + shift), with a backward pass of its own.

  Each pass reads and writes arrays of the size of x at most twice. Residuals
  are x and arrays of the size of `scale`.
  """
  return _group_norm_forward(x, scale, shift, mask, groups, activation)[0]


def _group_norm_forward(x, scale, shift, mask, groups, activation):
  # Keeps x itself as a residual, not the operations that computed it.
  x = materialised(x)
  mean, variance = _statistics(x, mask, groups)
  inverse = jax.lax.rsqrt(variance + NORM_EPS)
  # Otherwise XLA recomputes the group lookup of each channel at every position.
  factor = materialised(scale * inverse)
  offset = materialised(shift - mean * scale * inverse)
  out = _affine(x, factor, offset)
  out = ACTIVATIONS[activation](out) if activation else out
  return out, (x, scale, mask, mean, inverse, factor, offset)


def _group_norm_backward(
  groups: int, activation: str, residuals: tuple, g: Array
):
  x, scale, mask, mean, inverse, factor, offset = residuals
  # Hides from the compiler that this is the x of the forward pass: it would
  # otherwise keep intermediate results from there.
  x = jax.lax.optimization_barrier(x)
  if activation:
    out = _affine(x, factor, offset)
    g = jax.vjp(ACTIVATIONS[activation], out)[1](g)[0]
  g, wide = (y.astype(jnp.float32) for y in (materialised(g), x))
  over = lambda values: values.sum((-3, -2), keepdims=True)
  to_shift = over(g)
  to_scale = inverse * (over(g * wide) - mean * to_shift)
  # Gradient through mean and variance, which are shared by a group:
  # dx = scale inverse (g - mean(g) - norm(x) mean(g norm(x))).
  count = _count(x, mask)
  means = (
    _mean_of_group(scale * y, groups) / count for y in (to_shift, to_scale)
  )
  by_mean, by_variance = (inverse * y for y in means)
  slope = materialised(-inverse * by_variance)
  level = materialised(-by_mean - mean * slope)
  through = wide * slope + level
  if mask is not None:
    through = jnp.where(mask[..., None], through, 0.0)
  return (g * factor + through).astype(x.dtype), to_scale, to_shift, None


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)
# Traced once for all layers of the same shapes.
group_norm = jax.jit(_group_norm, static_argnums=(4, 5))


def _statistics(
  x: Array, mask: Bool[Array, "... h w"] | None, groups: int
) -> tuple[_Channels, _Channels]:
  """Mean and variance of each channel's group, in float32."""

  def mean_of_positions(values: Array) -> _Channels:
    if mask is not None:
      values = jnp.where(mask[..., None], values, 0.0)
    return values.sum((-3, -2), keepdims=True) / _count(x, mask)

  # In one pass over x: the variance within channels, plus the variance of
  # their means around the mean of the group.
  wide = x.astype(jnp.float32)
  mean, square = mean_of_positions(wide), mean_of_positions(jnp.square(wide))
  within = jnp.maximum(square - jnp.square(mean), 0.0)
  centre = _mean_of_group(mean, groups)
  return centre, _mean_of_group(within + jnp.square(mean - centre), groups)


def _count(x: Array, mask: Array | None) -> int | Float[Array, "... 1 1 1"]:
  """Number of positions in a frame's statistics, at least 1."""
  if mask is None:
    return x.shape[-3] * x.shape[-2]
  return jnp.maximum(mask.sum((-2, -1)), 1)[..., None, None, None]


def _mean_of_group(means: _Channels, groups: int) -> _Channels:
  # Works on per-channel means: splitting x itself into groups would copy it,
  # padded, on accelerators.
  split = means.reshape(*means.shape[:-1], groups, -1)
  split = jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape)
  return split.reshape(means.shape)


def _affine(x: Array, factor: _Channels, offset: _Channels) -> Array:
  """x * factor + offset, computed in float32 and rounded to the dtype of x."""
  return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)


def norm_text(
  text: Float[Array, "b l e"], mask: Bool[Array, "b l"] | None, groups: int
) -> Float[Array, "b l e"]:
  """Group norm over the unmasked tokens of each text, as module `norm_text`."""
  mask = None if mask is None else mask[:, None]
  return GroupNorm(groups, name="norm_text")(text[:, None], mask)[:, 0]


def sinusoid(time: PerSample, width: int) -> Float[Array, "b width"]:
  """Sinusoidal embedding of times in [0, 1], cosines first.

  IF's integer step k is the time k / 1000. Periods of the (even number of)
  features are from 2 pi to 2 pi * 10^4 steps.
  """
  half = width // 2
  frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / half)
  angles = 1000.0 * time[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
  """Sinusoid of a time in [0, 1], then Linear - activation - Linear."""

  config: UNetConfig
  execution: ExecutionConfig

  @nn.compact
  def __call__(self, time: PerSample) -> Float[Array, "b width"]:
    c, dtype = self.config, self.execution.dtype
    x = sinusoid(time, c.channels[0]).astype(dtype)
    x = Dense(c.channels[-1], dtype=dtype, name="in")(x)
    x = ACTIVATIONS[c.activation](x)
    return Dense(c.channels[-1], dtype=dtype, name="out")(x)


class TextPooling(nn.Module):
  """Attention pooling of the text to one vector as wide as the embedding.

  LayerNorm, attention from the (masked) mean token with a learned position to
  [mean token, tokens], Linear, LayerNorm (Imagen appendix F.1).
  """

  config: UNetConfig
  execution: ExecutionConfig

  @nn.compact
  def __call__(
    self, text: Float[Array, "b l e"], mask: Bool[Array, "b l"] | None
  ) -> Float[Array, "b width"]:
    c = self.config
    dense = lambda features, name: Dense(
      features, dtype=self.execution.dtype, name=name
    )
    norm = lambda name: nn.LayerNorm(
      epsilon=NORM_EPS, dtype=jnp.float32, name=name
    )
    width = text.shape[-1]
    tokens = norm("norm_in")(text)
    if mask is None:
      mask = jnp.ones(text.shape[:2], bool)
    weight = mask[..., None] / jnp.maximum(mask.sum(1), 1)[:, None, None]
    mean = (tokens * weight).sum(1, keepdims=True)
    position = self.param(
      "position", nn.initializers.normal(width**-0.5), (1, width)
    )
    query = mean + position
    keys = jnp.concatenate([query, tokens], axis=1)
    split = lambda x: einops.rearrange(
      x, "b l (n d) -> b l n d", n=c.pool_heads
    )
    mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    pooled = attend(
      split(dense(width, "query")(query))[:, None],
      None,
      jnp.stack(
        [split(dense(width, name)(keys)) for name in ("key", "value")], axis=2
      ),
      mask,
      kernel="xla",
    )
    pooled = einops.rearrange(pooled, "b 1 1 n d -> b (n d)")
    return norm("norm_out")(dense(c.channels[-1], "out")(pooled))


def to_patches(x: Video, side: int) -> Video:
  """Space to depth: (b t h w c) -> (b t h/side w/side side*side*c)."""
  return einops.rearrange(
    x, "b t (h i) (w j) c -> b t h w (i j c)", i=side, j=side
  )


def to_pixels(x: Video, side: int) -> Video:
  """Depth to space: the inverse of `to_patches`."""
  return einops.rearrange(
    x, "b t h w (i j c) -> b t (h i) (w j) c", i=side, j=side
  )


RESAMPLE: dict[str, Callable[[Video], Video]] = {
  "none": lambda x: x,
  "down": lambda x: einops.reduce(
    x, "b t (h i) (w j) c -> b t h w c", "mean", i=2, j=2
  ).astype(x.dtype),
  "up": lambda x: einops.repeat(x, "b t h w c -> b t (h i) (w j) c", i=2, j=2),
}
"""Average pooling of 2x2 pixels, and nearest-neighbour up-sampling."""


class ResBlock(nn.Module):
  """BigGAN residual block with scale-shift time embedding.

  norm - act - resample - conv - norm * (1 + scale) + shift - act - conv, plus
  the resampled input (through a 1x1 convolution if the width changes).

  Attributes:
    channels: output channels.
    resample: 'none', 'down' (average pool) or 'up' (nearest), on both paths.
  """

  config: UNetConfig
  execution: ExecutionConfig
  channels: int
  resample: str = "none"

  @nn.compact
  def __call__(self, x: Video, emb: Float[Array, "b e"]) -> Video:
    c, dtype = self.config, self.execution.dtype
    resample = RESAMPLE[self.resample]
    norm = lambda name: GroupNorm(c.norm_groups, c.activation, name=name)
    conv = functools.partial(Conv, self.channels, (3, 3), dtype=dtype)
    x = materialised(x)
    h = conv(name="conv_0")(resample(norm("norm_0")(x)))
    if not c.activate_embedding_once:
      emb = ACTIVATIONS[c.activation](emb)
    film = Dense(2 * self.channels, dtype=dtype, name="film")(emb)
    scale, shift = jnp.split(film[:, None, None, None, :], 2, axis=-1)
    h = norm("norm_1")(h, film=(scale, shift))
    h = conv(kernel_init=nn.initializers.zeros, name="conv_1")(h)
    x = resample(x)
    if x.shape[-1] != self.channels:
      x = Dense(self.channels, dtype=dtype, name="skip")(x)
    return (x + h) * jnp.asarray(c.skip_scale, dtype)


class TextAttention(nn.Module):
  """Attention of a frame's pixels to [text, pixels] (Imagen app. F.1).

  Attributes:
    self_attention: False: to the text only.
  """

  config: UNetConfig
  execution: ExecutionConfig
  self_attention: bool

  @nn.compact
  def __call__(
    self, x: Video, text: Float[Array, "b l e"], mask: Bool[Array, "b l"] | None
  ) -> Video:
    c, dtype = self.config, self.execution.dtype
    x = materialised(x)
    heads = x.shape[-1] // c.head_dim
    project = lambda parts, name: DenseGeneral(
      (parts, heads, c.head_dim), dtype=dtype, name=name
    )
    # The text is projected once per sample and shared by its frames.
    text_kv = project(2, "text_kv")(norm_text(text, mask, c.norm_groups))
    pixels = einops.rearrange(
      GroupNorm(c.norm_groups, name="norm")(x), "b t h w c -> b t (h w) c"
    )
    parts = project(3 if self.self_attention else 1, "qkv")(pixels)
    out = attend(
      parts[..., 0, :, :],
      parts[..., 1:, :, :] if self.self_attention else None,
      text_kv,
      mask,
      kernel=self.execution.attention_kernel,
    )
    out = DenseGeneral(
      x.shape[-1],
      axis=(-2, -1),
      dtype=dtype,
      kernel_init=nn.initializers.zeros,
      name="out",
    )(checkpoint_name(out, "attention"))
    return x + out.reshape(x.shape)
