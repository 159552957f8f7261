"""What inflation adds to the image U-Net: temporal blocks and resampling
(Lumiere, arXiv 2401.12945, section 3.1, figure 4 and appendix B)."""

import einops
import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.models.attention import attend
from lumiere_jax.models.blocks import GroupNorm
from lumiere_jax.models.layers import Conv, Dense, DenseGeneral
from lumiere_jax.parallel.sharding import whole
from lumiere_jax.typing import Video

TAPS = 3


def identity_taps(key, shape, dtype=jnp.float32) -> Array:
  """Kernel (taps, c, c) whose middle tap is the identity, the others zero."""
  del key
  taps, channels, _ = shape
  return jnp.zeros(shape, dtype).at[taps // 2].set(jnp.eye(channels))


def convolve_time(
  x: Video, kernel: Float[Array, "3 c d"], stride: int = 1
) -> Video:
  """Convolution along time alone, edge frames repeated as padding.

  Zeros beyond the ends would be seen as black frames, and differently so for
  every length and window; repeating the edge keeps a constant video constant.
  Written as one matrix product per tap, which both TPU and CPU run at the
  speed of a dense layer.
  """
  edge, frames = TAPS // 2, x.shape[1]
  padded = jnp.concatenate([x[:, :1]] * edge + [x] + [x[:, -1:]] * edge, axis=1)
  return sum(
    padded[:, k : k + frames : stride] @ kernel[k] for k in range(TAPS)
  )


class TemporalConv(nn.Module):
  """`convolve_time` with a bias.

  Attributes:
    stride: keeps every stride-th frame, frame 0 among them (appendix B: "1D
      temporal convolution followed by a stride"; the frames a stride would
      drop are never computed).
  """

  kernel_init: nn.initializers.Initializer
  dtype: jnp.dtype
  stride: int = 1

  @nn.compact
  def __call__(self, x: Video) -> Video:
    channels = x.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (TAPS, channels, channels))
    kernel = whole(kernel.astype(self.dtype))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    out = convolve_time(x.astype(self.dtype), kernel, self.stride)
    return out + bias.astype(self.dtype)


class TemporalDown(nn.Module):
  """Halves the frames; at initialisation it keeps every second one."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Video) -> Video:
    return TemporalConv(identity_taps, self.dtype, stride=2, name="conv")(x)


class TemporalUp(nn.Module):
  """Doubles the frames; at initialisation it shows every frame twice."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Video) -> Video:
    x = jnp.repeat(x, 2, axis=1)
    return TemporalConv(identity_taps, self.dtype, name="conv")(x)


class ConvInflation(nn.Module):
  """Factorised space-time convolution (figure 4b), the identity at first.

  1x3x3 convolution, norm, activation, 3x1x1 convolution, norm, activation,
  linear projection (zero at first), added to the input.
  """

  groups: int
  activation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Video) -> Video:
    channels = x.shape[-1]
    norm = lambda name: GroupNorm(self.groups, self.activation, name=name)
    fan_in = nn.initializers.lecun_normal(in_axis=(0, 1))
    h = Conv(channels, (3, 3), dtype=self.dtype, name="conv_space")(x)
    h = norm("norm_0")(h)
    h = TemporalConv(fan_in, self.dtype, name="conv_time")(h)
    h = norm("norm_1")(h)
    return x + zero_projection(channels, self.dtype)(h)


class TemporalAttention(nn.Module):
  """Self-attention over the frames of each position (figure 4c).

  Attributes:
    max_distance: offsets between frames beyond it share their bias.
    kernel: one of `attention.KERNELS`.
  """

  head_dim: int
  groups: int
  max_distance: int
  kernel: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Video) -> Video:
    channels = x.shape[-1]
    heads = channels // self.head_dim
    normed = GroupNorm(self.groups, name="norm")(x)
    # No bias on the keys: it would shift all logits of a query alike, which
    # the softmax ignores, so it could never learn.
    qkv = DenseGeneral(
      (3, heads, self.head_dim), use_bias=False, dtype=self.dtype, name="qkv"
    )(normed)
    bias = self._bias(heads, x.shape[1]).astype(self.dtype)

    h, w = x.shape[2:4]
    qkv = einops.rearrange(qkv, "b t h w i n d -> b (h w) t i n d")
    out = attend(
      qkv[..., 0, :, :],
      qkv[..., 1:, :, :],
      bias=bias,
      kernel=self.kernel,
      rows="groups",
    )
    out = einops.rearrange(out, "b (h w) t n d -> b t h w (n d)", h=h, w=w)
    out = checkpoint_name(out, "attention")
    return x + zero_projection(channels, self.dtype)(out)

  def _bias(self, heads: int, frames: int) -> Float[Array, "n t t"]:
    """Relative position bias: logits depend on key frame - query frame."""
    table = self.param(
      "position_bias",
      nn.initializers.normal(0.02),
      (2 * self.max_distance + 1, heads),
    )
    index = jnp.arange(frames)
    offset = jnp.clip(
      index[None, :] - index[:, None], -self.max_distance, self.max_distance
    )
    bias = table[offset + self.max_distance]
    return einops.rearrange(bias, "q k n -> n q k")


class AttentionInflation(nn.Module):
  """A stack of temporal attentions, the identity at first (figure 4c)."""

  num_attentions: int
  head_dim: int
  groups: int
  max_distance: int
  kernel: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Video) -> Video:
    for i in range(self.num_attentions):
      x = TemporalAttention(
        self.head_dim,
        self.groups,
        self.max_distance,
        self.kernel,
        self.dtype,
        name=f"attention_{i}",
      )(x)
    return x


def zero_projection(channels: int, dtype: jnp.dtype) -> nn.Dense:
  """The linear projection that makes a residual block the identity at first."""
  return Dense(
    channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="proj"
  )
