"""The architecture of a U-Net, as data."""

import dataclasses

import jax

from lumiere_jax.errors import UserError, suggest
from lumiere_jax.models import blocks
from lumiere_jax.models.attention import KERNELS

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
      raise UserError("config.model:", problem)

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
          f"{name}={size}",
          f"is no multiple of {self.spatial_factor}, the model's "
          "down-sampling in space",
          f"take {size + -size % self.spatial_factor}",
        )
