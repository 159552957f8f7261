"""Spatial building blocks with the semantics of Imagen's base U-Net as
DeepFloyd IF published it (Imagen, arXiv 2205.11487, appendix F).

Every block takes a video (b, t, h, w, c) and treats its frames one by one; an
image is a video of one frame.
"""

from collections.abc import Callable, Iterator
import functools

import einops
import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lumiere_jax.models.attention import attend
from lumiere_jax.models.sharded_layers import Conv, Dense, DenseGeneral
from lumiere_jax.parallel.backend import materialised
from lumiere_jax.typing import PerSample, Video


def gelu(x: Array) -> Array:
  """x times the normal distribution up to x.

  By erf, as torch has it: the erfc of `nn.gelu` costs several times as much.
  But in half precision 1 + erf has no digits left where x is negative.
  """
  if x.dtype != jnp.float32:
    return nn.gelu(x, approximate=False)
  return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable] = {"gelu": gelu, "silu": nn.silu}
NORM_EPS = 1e-5


class GroupNorm(nn.Module):
  """Group normalisation, statistics in float32 over each frame by itself.

  Input (..., h, w, c). The statistics never mix frames, so that neither the
  length of a video nor the window it is seen through changes a frame. Positions
  where `mask` is False are left out of them; None: there are none. Where all
  are left out, mean and variance are 0.

  The variance of a channel is the difference of two means, taken in one reading
  of x: where a channel's mean is hundreds of times its deviation, digits of the
  variance are lost.

  Attributes:
    groups: of channels.
    activation: of what is normed, one of `ACTIVATIONS`; '' is none.
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
    """Norms x.

    Args:
      x: of any dtype, which the result has.
      mask: see above.
      film: scale and shift (..., 1, 1, c) of what is normed, before the
        activation: normed * (1 + scale) + shift.
    """
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    shift = self.param("bias", nn.initializers.zeros, (channels,))
    if film is not None:
      more, add = (part.astype(jnp.float32) for part in film)
      scale, shift = scale * (1 + more), shift * (1 + more) + add
    # One for each frame, and on each device that has frames of its own.
    every = jnp.zeros_like(x[..., :1, :1, :], jnp.float32)
    scale, shift = scale + every, shift + every
    return normed(x, scale, shift, mask, self.groups, self.activation)


_Channels = Float[Array, "... 1 1 c"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normed(
  x: Float[Array, "... h w c"],
  scale: _Channels,
  shift: _Channels,
  mask: Bool[Array, "... h w"] | None,
  groups: int,
  activation: str,
) -> Array:
  """What `GroupNorm` computes: activation(norm(x) * scale + shift).

  Both ways it reads x and writes as large an array twice at most, and between
  them it keeps x and what is as small as `scale`.
  """
  return _normed_forward(x, scale, shift, mask, groups, activation)[0]


def _normed_forward(x, scale, shift, mask, groups, activation):
  # Where x was itself computed, it is kept rather than how.
  x = materialised(x)
  mean, variance = _statistics(x, mask, groups)
  inverse = jax.lax.rsqrt(variance + NORM_EPS)
  factor, offset = _materialised(
    scale * inverse, shift - mean * scale * inverse
  )
  out = _affine(x, factor, offset)
  out = ACTIVATIONS[activation](out) if activation else out
  return out, (x, scale, mask, mean, inverse, factor, offset)


def _normed_backward(groups: int, activation: str, kept: tuple, g: Array):
  x, scale, mask, mean, inverse, factor, offset = kept
  # To a compiler another array than in the forward pass: it would otherwise
  # keep what is computed from x here again.
  x = jax.lax.optimization_barrier(x)
  if activation:
    out = _affine(x, factor, offset)
    g = jax.vjp(ACTIVATIONS[activation], out)[1](g)[0]
  g, wide = (y.astype(jnp.float32) for y in (materialised(g), x))
  over = lambda values: values.sum((-3, -2), keepdims=True)
  to_shift = over(g)
  to_scale = inverse * (over(g * wide) - mean * to_shift)
  # Through the mean and the variance, each the same for a group:
  # dx = scale inverse (g - mean(g) - norm(x) mean(g norm(x))).
  count = _count(x, mask)
  means = (
    _mean_of_group(scale * y, groups) / count for y in (to_shift, to_scale)
  )
  by_mean, by_variance = (inverse * y for y in means)
  slope = -inverse * by_variance
  slope, level = _materialised(slope, -by_mean - mean * slope)
  through = wide * slope + level
  if mask is not None:
    through = jnp.where(mask[..., None], through, 0.0)
  return (g * factor + through).astype(x.dtype), to_scale, to_shift, None


normed.defvjp(_normed_forward, _normed_backward)


def _statistics(
  x: Array, mask: Bool[Array, "... h w"] | None, groups: int
) -> tuple[_Channels, _Channels]:
  """Mean and variance of each channel's group, in float32."""

  def mean_of_positions(values: Array) -> _Channels:
    if mask is not None:
      values = jnp.where(mask[..., None], values, 0.0)
    return values.sum((-3, -2), keepdims=True) / _count(x, mask)

  # Both in one reading of x: the variance within channels, and of their
  # means about the group's.
  wide = x.astype(jnp.float32)
  mean, square = mean_of_positions(wide), mean_of_positions(jnp.square(wide))
  within = jnp.maximum(square - jnp.square(mean), 0.0)
  centre = _mean_of_group(mean, groups)
  return centre, _mean_of_group(within + jnp.square(mean - centre), groups)


def _count(x: Array, mask: Array | None) -> int | Float[Array, "... 1 1 1"]:
  """How many positions a frame's statistics are of, 1 where none."""
  if mask is None:
    return x.shape[-3] * x.shape[-2]
  return jnp.maximum(mask.sum((-2, -1)), 1)[..., None, None, None]


def _mean_of_group(means: _Channels, groups: int) -> _Channels:
  # Of the few channels: no large array is cut into groups, which would be
  # written out, padded, on accelerators.
  split = means.reshape(*means.shape[:-1], groups, -1)
  split = jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape)
  return split.reshape(means.shape)


def _affine(x: Array, factor: _Channels, offset: _Channels) -> Array:
  """x * factor + offset, rounded to the dtype of x: large arrays stay small."""
  return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)


def _materialised(*arrays: Array) -> Iterator[Array]:
  # A loop over an array would look each channel's group up at every position.
  return map(materialised, arrays)


def sinusoid(time: PerSample, width: int) -> Float[Array, "b width"]:
  """Sinusoidal embedding, cosines first, of times counted in 1000 steps.

  Args:
    time: (b,) in [0, 1]; IF's integer step k is k / 1000.
    width: even number of features; periods from 2 pi to 2 pi * 10^4 steps.
  """
  half = width // 2
  frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / half)
  angles = 1000.0 * time[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
  """Sinusoid of a time in [0, 1], then Linear - activation - Linear."""

  sinusoid_width: int
  width: int
  activation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, time: PerSample) -> Float[Array, "b width"]:
    x = sinusoid(time, self.sinusoid_width).astype(self.dtype)
    x = Dense(self.width, dtype=self.dtype, name="in")(x)
    x = ACTIVATIONS[self.activation](x)
    return Dense(self.width, dtype=self.dtype, name="out")(x)


class TextPooling(nn.Module):
  """Text pooled by attention to one vector the size of the time embedding.

  LayerNorm, attention from the (masked) mean token with a learned position to
  [mean token, tokens], Linear, LayerNorm (Imagen appendix F.1).
  """

  heads: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    text: Float[Array, "b l e"],
    mask: Bool[Array, "b l"] | None,
  ) -> Float[Array, "b width"]:
    dense = lambda features, name: Dense(features, dtype=self.dtype, name=name)
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
    split = lambda x: einops.rearrange(x, "b l (n d) -> b l n d", n=self.heads)
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
    return norm("norm_out")(dense(self.width, "out")(pooled))


def halve(x: Video) -> Video:
  """Average pooling of 2x2 pixels: (b t h w c) -> (b t h/2 w/2 c)."""
  return einops.reduce(
    x, "b t (h i) (w j) c -> b t h w c", "mean", i=2, j=2
  ).astype(x.dtype)


def double(x: Video) -> Video:
  """Nearest-neighbour up-sampling: (b t h w c) -> (b t 2h 2w c)."""
  return einops.repeat(x, "b t h w c -> b t (h i) (w j) c", i=2, j=2)


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
  "down": halve,
  "up": double,
}


class ResBlock(nn.Module):
  """BigGAN residual block with scale-shift time embedding.

  norm - act - resample - conv - norm * (1 + scale) + shift - act - conv, plus
  the resampled input (through a 1x1 convolution where the width changes).

  Attributes:
    channels: output channels.
    resample: 'none', 'down' (average pool) or 'up' (nearest), on both paths.
    activate_embedding: False where the embedding comes activated already
      (IF's super-resolution models).
    out_scale: factor on the sum; IF's super-resolution models use sqrt(1/2).
  """

  channels: int
  groups: int
  activation: str
  resample: str
  activate_embedding: bool
  out_scale: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Video, emb: Float[Array, "b e"]) -> Video:
    act = ACTIVATIONS[self.activation]
    resample = RESAMPLE[self.resample]
    norm = lambda name: GroupNorm(self.groups, self.activation, name=name)
    x = materialised(x)
    h = resample(norm("norm_0")(x))
    h = Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_0")(h)
    if self.activate_embedding:
      emb = act(emb)
    film = Dense(2 * self.channels, dtype=self.dtype, name="film")(emb)
    film = jnp.split(film[:, None, None, None, :], 2, axis=-1)
    h = norm("norm_1")(h, film=film)
    h = Conv(
      self.channels,
      (3, 3),
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="conv_1",
    )(h)
    x = resample(x)
    if x.shape[-1] != self.channels:
      x = Dense(self.channels, dtype=self.dtype, name="skip")(x)
    return (x + h) * jnp.asarray(self.out_scale, self.dtype)


class TextAttention(nn.Module):
  """Attention of the pixels of a frame to [text, pixels] (Imagen app. F.1).

  Attributes:
    self_attention: False: keys and values are the text alone.
    kernel: one of `attention.KERNELS`.
  """

  head_dim: int
  groups: int
  self_attention: bool
  kernel: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Video,
    text: Float[Array, "b l e"],
    mask: Bool[Array, "b l"] | None,
  ) -> Video:
    x = materialised(x)
    b, t, h, w, channels = x.shape
    heads = channels // self.head_dim
    project = lambda parts, name: DenseGeneral(
      (parts, heads, self.head_dim), dtype=self.dtype, name=name
    )
    # The text is projected once per sample, then shared by its frames.
    seen = None if mask is None else mask[:, None]
    text = GroupNorm(self.groups, name="norm_text")(text[:, None], seen)[:, 0]
    text_kv = project(2, "text_kv")(text)
    pixels = einops.rearrange(
      GroupNorm(self.groups, name="norm")(x), "b t h w c -> b t (h w) c"
    )
    parts = project(3 if self.self_attention else 1, "qkv")(pixels)
    out = attend(
      parts[..., 0, :, :],
      parts[..., 1:, :, :] if self.self_attention else None,
      text_kv,
      mask,
      kernel=self.kernel,
    )
    out = checkpoint_name(out, "attention")
    out = DenseGeneral(
      channels,
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="out",
    )(out)
    return x + out.reshape(b, t, h, w, channels)
