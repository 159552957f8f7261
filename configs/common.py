"""Pieces that the configs of several stages share."""

import dataclasses

from ml_collections import ConfigDict

from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.unet import TemporalConfig, UNetConfig
from lumiere_jax.training.config import (
  Experiment,
  PreviewConfig,
  TextConfig,
  TrainConfig,
)
from lumiere_jax.typing import check_choice


def choose(size: str, sizes: dict[str, Experiment]) -> ConfigDict:
  """The experiment of a size, as a ConfigDict for flags to override.

  Raises:
    UserError: the size is unknown.
  """
  check_choice("config size", size, sizes)
  return ConfigDict(dataclasses.asdict(sizes[size]))


def inflated(model: UNetConfig, temporal: TemporalConfig) -> UNetConfig:
  """The video model of an image model: nothing spatial differs."""
  return dataclasses.replace(model, temporal=temporal)


# DeepFloyd IF-I-XL (4.3 B parameters), at twice its resolution.
IF_I_XL = UNetConfig(
  channels=(704, 1408, 2112, 2816),
  num_res_blocks=(3, 3, 3, 3),
  attention=("none", "self", "self", "self"),
  text_dim=4096,
  text_channels=2816,
)

# IF-II-L's widths and blocks, with Imagen's 256 -> 1024 choice of attention:
# to the text alone, and at the coarsest level only, as frames are 1024 wide.
SSR_1024 = UNetConfig(
  channels=(160, 320, 640, 960, 1280),
  num_res_blocks=(2, 2, 3, 5, 5),
  attention=("none", "none", "none", "none", "cross"),
  text_dim=4096,
  text_channels=1280,
  in_channels=6,
  noise_conditioned=True,
  activate_embedding_once=True,
  skip_scale=0.7071,
)

T5_XXL = TextConfig()

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

TINY_SSR = dataclasses.replace(
  TINY,
  attention=("none", "cross"),
  in_channels=6,
  noise_conditioned=True,
  activate_embedding_once=True,
  skip_scale=0.7071,
)

TINY_TEMPORAL = TemporalConfig(
  resample=(True,), num_attentions=1, head_dim=16, max_distance=16
)

TINY_TEXT = TextConfig(max_length=48)


def tiny_data(**changes) -> DataConfig:
  """A few procedural scenes, small."""
  data = DataConfig(source="procedural", num_clips=64, threads=2)
  return dataclasses.replace(data, **changes)


def tiny_train(**changes) -> TrainConfig:
  """A few steps that a CPU takes in seconds."""
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
