"""A U-Net as data: its architecture, and how it is executed."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from lumiere_jax.errors import UserError, check_choice, check_least
from lumiere_jax.models.attention import KERNELS

ATTENTION = ("none", "cross", "self")
LOW_RESOLUTION = ("half_pixel", "corners")
ACTIVATIONS = ("gelu", "silu")
DTYPES = ("float32", "bfloat16", "float16")

REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
  "attention": jax.checkpoint_policies.save_only_these_names("attention"),
  "products": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names("convolution"),
  ),
}
"""What the backward pass keeps of a block; the rest is recomputed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
  """How a U-Net is computed; its function is the same up to rounding.

  Attributes:
    dtype: of the computation; parameters, norms and softmax are float32.
    attention_kernel: 'auto', 'xla', 'chunked', 'flash' or 'cudnn'; see
      `attention.KERNELS`.
    remat: of each level, what the backward pass keeps of its blocks: 'none'
      recomputes nothing, 'full' keeps nothing, 'attention' only the outputs of
      attention, 'products' those of convolutions and matrix products; () is
      'none' everywhere. Trades speed for memory.
    frame_chunk: frames that spatial layers process at once; 0 is all. Trades
      speed for memory.
  """

  dtype: str = "float32"
  attention_kernel: str = "xla"
  remat: tuple[str, ...] = ()
  frame_chunk: int = 0

  def __post_init__(self):
    where = "config.execution"
    check_least(self, where, ("frame_chunk",), least=0)
    check_choice(f"{where}.dtype", self.dtype, DTYPES)
    check_choice(f"{where}.attention_kernel", self.attention_kernel, KERNELS)
    for kind in self.remat:
      check_choice(f"{where}.remat", kind, REMAT)

  def check_levels(self, levels: int) -> None:
    """Checks that `remat` fits a network of so many levels."""
    if len(self.remat) not in (0, levels):
      raise UserError(
        "config.execution.remat",
        f"has {len(self.remat)} entries, config.model.channels has {levels}",
        "give one per level, or none",
      )


EXECUTION_KEYS = tuple(f.name for f in dataclasses.fields(ExecutionConfig))


def move_execution(values: Mapping[str, Any]) -> dict[str, Any]:
  """A stage's config with the keys of `execution` that were in `model`.

  Bundles, runs and configs of older versions have them there.
  """
  model = dict(values.get("model") or {})
  moved = {key: model.pop(key) for key in EXECUTION_KEYS if key in model}
  if not moved:
    return dict(values)
  execution = {**values.get("execution", {}), **moved}
  return {**values, "model": model, "execution": execution}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemporalConfig:
  """The temporal layers that inflation adds.

  Attributes:
    resample: for each spatial resampling (one fewer than levels, finest
      first), whether time is resampled by 2 as well.
    num_attentions: temporal attentions in each attention inflation block.
    head_dim: width of their heads.
    max_distance: larger offsets (in frames of the coarsest level) share a
      position bias. 0 is the longest offset in a training clip, see
      `UNetConfig.for_clips`; biases of longer ones would never train.
    activation: of the convolutional inflation blocks.
    text: temporal attention attends to the text too, see
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
      and pixels). The mid block attends as the coarsest level does, and at
      least to the text.
    text_dim: width of the text encoder's output.
    text_channels: width of its projection for attention.
    pool_heads: heads of the attention pooling of the text.
    head_dim: width of the attention heads.
    in_channels: 3, or 6 with a concatenated low-resolution video.
    low_resolution: alignment of the bilinear up-sampling of the low-resolution
      video: 'half_pixel' (torch's `align_corners=False`) or 'corners'
      (`align_corners=True`, IF-II).
    cond_channels: conditioning channels that enter through `cond_in`: 4 for
      (masked video, mask), else 0.
    out_channels: 3, or 6 for a learned variance.
    norm_groups: groups of the group norms.
    activation: 'gelu' or 'silu'.
    noise_embedding: the schedule that turns a log-SNR into the time which is
      embedded: 'cosine', 'linear', 'squaredcos_cap_v2' (IF) or 'log_snr'. Every
      model that starts from these spatial layers must have the same.
    noise_embedding_shift: of that schedule; not 0 only in bundles of format 1
      trained on a shifted one.
    noise_conditioned: embeds `Cond.noise_level` (super-resolution).
    activate_embedding_once: IF-II's "efficient activation".
    skip_scale: factor on every residual sum; IF-II: 0.7071.
    mask_text: True: padding tokens have no effect. False: attention, pooling
      and the norms of the text treat padding as tokens (IF).
    patch: side of the pixel squares that become channels of one position of the
      finest level (space to depth); 1: each pixel is a position.
    temporal: None for an image model.
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
  temporal: TemporalConfig | None = None

  def __post_init__(self):
    levels = len(self.channels)
    for name in ("num_res_blocks", "attention"):
      if (count := len(getattr(self, name))) != levels:
        raise UserError(
          f"config.model.{name}",
          f"has {count} entries, channels has {levels}",
          "give one per level",
        )
    check_least(self, "config.model", ("patch",), least=1)
    for kind in self.attention:
      check_choice("config.model.attention", kind, ATTENTION)
    check_choice(
      "config.model.low_resolution", self.low_resolution, LOW_RESOLUTION
    )
    check_choice("config.model.activation", self.activation, ACTIVATIONS)
    attends = zip(self.channels, self.attention, strict=True)
    with_heads = [width for width, kind in attends if kind != "none"]
    for name, divisor, widths in (
      ("channels", "norm_groups", self.channels),
      ("text_channels", "norm_groups", [self.text_channels]),
      ("text_dim", "pool_heads", [self.text_dim]),
      ("channels", "head_dim", [*with_heads, self.channels[-1]]),
    ):
      size = getattr(self, divisor)
      for width in widths:
        if width % size:
          raise UserError(
            f"config.model.{name}",
            f"has {width}, which is not a multiple of {divisor}={size}",
            "change one of them",
          )
    if not (t := self.temporal):
      return
    if len(t.resample) != levels - 1:
      raise UserError(
        "config.model.temporal.resample",
        f"has {len(t.resample)} entries",
        f"give {levels - 1}, one fewer than levels",
      )
    check_least(t, "config.model.temporal", ("max_distance",), least=0)
    if self.channels[-1] % t.head_dim:
      raise UserError(
        f"config.model.temporal.head_dim={t.head_dim}",
        f"does not divide the width {self.channels[-1]} of the coarsest level",
        "give a divisor of it",
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
    """The config with `temporal.max_distance` for training clips.

    If of the longest one n frames are left on the coarsest level, it is n - 1.
    """
    if not self.temporal or self.temporal.max_distance:
      return self
    longest = max(frames // self.temporal_factor - 1, 1)
    temporal = dataclasses.replace(self.temporal, max_distance=longest)
    return dataclasses.replace(self, temporal=temporal)

  def check_video(self, frames: int, height: int, width: int) -> None:
    """Checks that the size of a video divides by the model's factors."""
    for name, size, factor, kind in (
      ("num_frames", frames, self.temporal_factor, "temporal"),
      ("height", height, self.spatial_factor, "spatial"),
      ("width", width, self.spatial_factor, "spatial"),
    ):
      if rest := size % factor:
        fitting = [n for n in (size - rest, size - rest + factor) if n]
        raise UserError(
          f"{name}={size}",
          f"is not a multiple of {factor}, the model's {kind} down-sampling "
          "factor",
          f"use {' or '.join(map(str, fitting))}",
        )
