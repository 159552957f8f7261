"""Temporal blocks and resampling that inflation adds to the image U-Net.

Lumiere, arXiv 2401.12945, section 3.1, figure 4 and appendix B.
"""

import einops
import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lumiere_jax.errors import UserError
from lumiere_jax.models.attention import attend
from lumiere_jax.models.blocks import GroupNorm, norm_text
from lumiere_jax.models.config import ExecutionConfig, TemporalConfig
from lumiere_jax.models.sharded_layers import Conv, Dense, DenseGeneral, product
from lumiere_jax.parallel.backend import materialised
from lumiere_jax.parallel.sharding import gather_weight
from lumiere_jax.typing import Video

TAPS = 3


def identity_taps(key, shape, dtype=jnp.float32) -> Array:
  """Kernel (taps, c, c): the middle tap is the identity, others are zero."""
  del key
  taps, channels, _ = shape
  return jnp.zeros(shape, dtype).at[taps // 2].set(jnp.eye(channels))


def _convolve(x: Video, kernel: Float[Array, "3 c d"]) -> Video:
  before, here, after = (product(x, tap) for tap in kernel)
  return _shift_later(before) + here + _shift_earlier(after)


def _convolve_halved(x: Video, kernel: Float[Array, "3 c d"]) -> Video:
  if x.shape[1] % 2:
    raise ValueError(
      f"{x.shape[1]} frames cannot be halved; give an even number"
    )
  even, odd = (materialised(x[:, i::2]) for i in (0, 1))
  before = materialised(jnp.concatenate([even[:, :1], odd[:, :-1]], axis=1))
  here = product(even, kernel[1]) + product(odd, kernel[2])
  return product(before, kernel[0]) + here


def _convolve_doubled(x: Video, kernel: Float[Array, "3 c d"]) -> Video:
  # Two of the three frames under the kernel are equal.
  before, here, after = kernel
  even = _shift_later(product(x, before)) + product(x, here + after)
  odd = product(x, before + here) + _shift_earlier(product(x, after))
  return einops.rearrange([even, odd], "i b t h w d -> b (t i) h w d")


def _shift_later(x: Video) -> Video:
  return jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)


def _shift_earlier(x: Video) -> Video:
  return jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)


_CONVOLUTIONS = {
  "none": _convolve,
  "down": _convolve_halved,
  "up": _convolve_doubled,
}


def convolve_time(
  x: Video, kernel: Float[Array, "3 c d"], resample: str = "none"
) -> Video:
  """Temporal convolution; the padding repeats the edge frames.

  Zero padding would act as black frames at the ends of every clip and window;
  repeating the edge keeps a constant video constant. Computed as one matrix
  product per tap, which TPU and CPU run at the speed of a dense layer; the
  products are then shifted in time.

  Args:
    x: (b, t, h, w, c); 'down' needs an even t.
    kernel: taps for the frame before, the frame, and the frame after.
    resample: 'none'; 'down': output at frames 0, 2, 4 ... only (appendix B:
      "1D temporal convolution followed by a stride"); 'up': of every frame
      shown twice.
  """
  return materialised(_CONVOLUTIONS[resample](materialised(x), kernel))


class TemporalConv(nn.Module):
  """`convolve_time` with a bias."""

  kernel_init: nn.initializers.Initializer
  dtype: str
  resample: str = "none"

  @nn.compact
  def __call__(self, x: Video) -> Video:
    channels = x.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (TAPS, channels, channels))
    kernel = gather_weight(kernel.astype(self.dtype))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    out = convolve_time(x.astype(self.dtype), kernel, self.resample)
    return out + bias.astype(self.dtype)


class TemporalResample(nn.Module):
  """Halves ('down') or doubles ('up') the frame rate.

  At initialisation it drops every second frame or repeats every frame.
  """

  resample: str
  dtype: str

  @nn.compact
  def __call__(self, x: Video) -> Video:
    conv = TemporalConv(identity_taps, self.dtype, self.resample, name="conv")
    return conv(x)


class ConvInflation(nn.Module):
  """Factorised space-time convolution (figure 4b).

  1x3x3 convolution, norm, activation, 3x1x1 convolution, norm, activation,
  linear projection (zero-initialised), added to the input.
  """

  temporal: TemporalConfig
  groups: int
  execution: ExecutionConfig

  @nn.compact
  def __call__(self, x: Video) -> Video:
    channels, dtype = x.shape[-1], self.execution.dtype
    norm = lambda name: GroupNorm(
      self.groups, self.temporal.activation, name=name
    )
    fan_in = nn.initializers.lecun_normal(in_axis=(0, 1))
    h = Conv(channels, (3, 3), dtype=dtype, name="conv_space")(x)
    h = TemporalConv(fan_in, dtype, name="conv_time")(norm("norm_0")(h))
    return x + zero_projection(channels, dtype)(norm("norm_1")(h))


class TemporalAttention(nn.Module):
  """Attention of each position over time (figure 4c), optionally to the text.

  Attention to the text is our addition. In the paper the text reaches temporal
  layers only through the features of the image model, which need not depend on
  words that describe motion.
  """

  temporal: TemporalConfig
  groups: int
  execution: ExecutionConfig

  @nn.compact
  def __call__(
    self,
    x: Video,
    text: Float[Array, "b l e"] | None = None,
    mask: Bool[Array, "b l"] | None = None,
  ) -> Video:
    channels, width = x.shape[-1], self.temporal.head_dim
    heads, dtype = channels // width, self.execution.dtype
    # A bias of the keys would shift all logits of a query equally, which the
    # softmax ignores.
    qkv = DenseGeneral(
      (3, heads, width), use_bias=False, dtype=dtype, name="qkv"
    )(GroupNorm(self.groups, name="norm")(x))
    bias = self._bias(heads, x.shape[1]).astype(dtype)
    if text is not None:
      text = DenseGeneral((2, heads, width), dtype=dtype, name="text_kv")(
        norm_text(text, mask, self.groups)
      )
      bias = jnp.pad(bias, ((0, 0), (0, 0), (text.shape[1], 0)))
    qkv = einops.rearrange(qkv, "b t h w i n d -> b (h w) t i n d")
    out = attend(
      qkv[..., 0, :, :],
      qkv[..., 1:, :, :],
      text,
      None if text is None else mask,
      bias,
      kernel=self.execution.attention_kernel,
      rows="groups",
    )
    out = einops.rearrange(out, "b (h w) t n d -> b t h w (n d)", h=x.shape[2])
    out = checkpoint_name(out, "attention")
    return x + zero_projection(channels, dtype)(out)

  def _bias(self, heads: int, frames: int) -> Float[Array, "n t t"]:
    """Relative position bias, by key frame - query frame."""
    far = self.temporal.max_distance
    if not far:
      raise UserError(
        "config.model.temporal.max_distance=0",
        "depends on the length of the training clips, which the network does "
        "not know",
        "give the number, or call `UNetConfig.for_clips`",
      )
    table = self.param(
      "position_bias", nn.initializers.normal(0.02), (2 * far + 1, heads)
    )
    index = jnp.arange(frames)
    offset = jnp.clip(index[None, :] - index[:, None], -far, far)
    return einops.rearrange(table[offset + far], "q k n -> n q k")


class AttentionInflation(nn.Module):
  """A stack of temporal attentions (figure 4c)."""

  temporal: TemporalConfig
  groups: int
  execution: ExecutionConfig

  @nn.compact
  def __call__(
    self, x: Video, text: Array | None = None, mask: Array | None = None
  ) -> Video:
    for i in range(self.temporal.num_attentions):
      x = TemporalAttention(
        self.temporal, self.groups, self.execution, name=f"attention_{i}"
      )(x, text, mask)
    return x


def zero_projection(channels: int, dtype: str) -> nn.Dense:
  """Projection that makes a residual block the identity at initialisation."""
  return Dense(
    channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="proj"
  )
