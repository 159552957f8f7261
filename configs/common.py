"""Shared parts of the configs."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from lumiere_jax.data.config import DataConfig
from lumiere_jax.errors import check_choice
from lumiere_jax.models.config import (
  ExecutionConfig,
  TemporalConfig,
  UNetConfig,
)
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import DiffusionConfig
from lumiere_jax.training.config import (
  Experiment,
  PreviewConfig,
  TextConfig,
  TrainConfig,
)


def choose(size: str, sizes: dict[str, Experiment]) -> ConfigDict:
  """The experiment of a size, as a ConfigDict for flags to override."""
  check_choice("config size", size, sizes)
  config = ConfigDict(dataclasses.asdict(sizes[size]))
  # A number or a string; a number or None.
  _take(config.diffusion, "shift", object)
  if config.defaults:
    _take(config.defaults, "log_snr_min", float)
  return config


def replace(experiment: Experiment, **changes: Any) -> Experiment:
  """The experiment with changes; those of a part are a dict of its fields."""
  parts = {
    name: dataclasses.replace(getattr(experiment, name), **change)
    if isinstance(change, dict)
    else change
    for name, change in changes.items()
  }
  return dataclasses.replace(experiment, **parts)


def _take(config: ConfigDict, name: str, kind: type) -> None:
  """Sets the type of a value that cannot be inferred from its default."""
  config[name] = config_dict.FieldReference(config[name], field_type=kind)


def on_chips(model: UNetConfig) -> ExecutionConfig:
  """For accelerators: bfloat16, fused attention, and only the input of each
  block kept for the backward pass."""
  return ExecutionConfig(
    dtype="bfloat16",
    attention_kernel="auto",
    remat=("full",) * len(model.channels),
  )


def inflated(model: UNetConfig, temporal: TemporalConfig) -> UNetConfig:
  """The video model of an image model, with the same spatial layers."""
  return dataclasses.replace(model, temporal=temporal)


# DeepFloyd IF-I-XL (4.3 B parameters) as published, with learned variance, so
# that its weights can be imported.
IF_I_XL = UNetConfig(
  channels=(704, 1408, 2112, 2816),
  num_res_blocks=(3, 3, 3, 3),
  attention=("none", "self", "self", "self"),
  text_dim=4096,
  text_channels=2816,
  out_channels=6,
  noise_embedding="squaredcos_cap_v2",
  mask_text=False,
)

# Of a network that enlarges: IF-II's, and its input with the low resolution.
UPSCALES = {
  "in_channels": 6,
  "noise_conditioned": True,
  "activate_embedding_once": True,
  "skip_scale": 0.7071,
}

# IF-II-L (1.2 B), trained for 64 -> 256 pixels.
IF_II_L = UNetConfig(
  channels=(160, 320, 640, 960, 1280),
  num_res_blocks=(2, 2, 3, 5, 5),
  attention=("none", "none", "none", "self", "self"),
  text_dim=4096,
  text_channels=1280,
  low_resolution="corners",
  out_channels=6,
  noise_embedding="squaredcos_cap_v2",
  mask_text=False,
  **UPSCALES,
)

IF_DIFFUSION = DiffusionConfig(
  schedule="squaredcos_cap_v2", prediction="eps", null_text="empty"
)


def for_videos(diffusion: DiffusionConfig) -> DiffusionConfig:
  """Shifted noise levels for clips, whose frames share content."""
  return dataclasses.replace(diffusion, shift="auto")


# IF-II-L's widths and blocks, with the attention of Imagen's 256 -> 1024 model:
# only to the text, and only at the coarsest level, because frames are large.
SSR_1024 = dataclasses.replace(
  IF_II_L,
  attention=("none", "none", "none", "none", "cross"),
  low_resolution="half_pixel",
  out_channels=3,
  noise_embedding="cosine",
  mask_text=True,
)

# In bfloat16 the XXL encoder needs 9 GB.
T5_XXL = TextConfig(dtype="bfloat16")
IF_TEXT = dataclasses.replace(T5_XXL, cleaning="if")

# Fine-tunes IF to another resolution, with a tenth of its peak learning rate to
# preserve its features. Batch and steps are ours.
FINE_TUNE = TrainConfig(
  steps=50_000,
  batch_size=512,
  trainable=".*",
  optimizer="adafactor",
  learning_rate=5e-6,
  warmup_steps=1_000,
)

# Filters scene cuts and slideshows in real footage for video stages; see
# `DataConfig` for measurements.
FOOTAGE = {"scene_cuts": 15.0, "min_motion": 0.5}
PREVIEW = PreviewConfig(every=5_000, steps=50)

TINY = UNetConfig(
  channels=(32, 64),
  num_res_blocks=(1, 1),
  attention=("none", "self"),
  text_dim=64,
  text_channels=32,
  pool_heads=4,
  head_dim=16,
  norm_groups=8,
  activation="silu",
)

TINY_SSR = dataclasses.replace(TINY, attention=("none", "cross"), **UPSCALES)

TINY_TEMPORAL = TemporalConfig(resample=(True,), num_attentions=1, head_dim=16)
TINY_TEXT = TextConfig(max_length=48)
# A batch of two clips cannot be split over many devices; they share pixel rows.
TINY_MESH = MeshConfig(data=1, space=-1)

# DeepFloyd IF's architecture, small, for the stand-ins of its weights in
# tests/stand_ins.py.
IF_TINY = dataclasses.replace(
  TINY,
  norm_groups=32,
  activation="gelu",
  out_channels=6,
  noise_embedding="squaredcos_cap_v2",
  mask_text=False,
)

IF_TINY_SSR = dataclasses.replace(IF_TINY, low_resolution="corners", **UPSCALES)

IF_TINY_TEXT = dataclasses.replace(IF_TEXT, dtype="float32")


def tiny_data(**changes) -> DataConfig:
  """A few small procedural scenes."""
  data = DataConfig(source="procedural", num_clips=64, threads=2)
  return dataclasses.replace(data, **changes)


def tiny_train(**changes) -> TrainConfig:
  """A few steps, seconds on a CPU."""
  train = TrainConfig(
    steps=20,
    batch_size=2,
    trainable="",
    learning_rate=1e-3,
    warmup_steps=5,
    ema_decay=0.99,
    log_every=1,
    eval_every=0,
    eval_clips=4,
    eval_levels=4,
    save_every=10,
  )
  return dataclasses.replace(train, **changes)
