"""The small cascade of `make demo`: every stage, minutes on two CPU cores.

Scenes drawn by the program and, for `base_real`, six clips of Big Buck Bunny
(CC BY 3.0, Blender Foundation). The base sees scenes of 16 frames, as many
different ones as the minutes allow, then real clips of 80; it makes videos of
80 frames of 16x16 pixels, and super-resolution takes them to 64x64 in windows
of 16 frames.

t2i -> base -> base_real; ssr_image -> ssr; see launch/demo.py for the commands
and README for what they print.
"""

import dataclasses
from importlib import resources

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.unet import TemporalConfig, UNetConfig
from lumiere_jax.pipelines.stage import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

SIDE = 16
UPSCALE = 4
CROP = 32

# Narrow where pixels are many: a CPU is slow there, and fast at 128 channels
# on a small grid.
IMAGE = UNetConfig(
  channels=(32, 64, 128),
  num_res_blocks=(1, 1, 1),
  attention=("none", "self", "self"),
  text_dim=64,
  text_channels=64,
  pool_heads=4,
  head_dim=32,
  norm_groups=16,
  activation="silu",
)

SSR_IMAGE = dataclasses.replace(
  IMAGE,
  channels=(32, 64, 96),
  attention=("none", "none", "cross"),
  text_channels=32,
  in_channels=6,
  noise_conditioned=True,
  activate_embedding_once=True,
  skip_scale=0.7071,
)

TEMPORAL = TemporalConfig(
  resample=(True, True), num_attentions=1, head_dim=32, max_distance=4
)

DATA = DataConfig(
  source="procedural", num_clips=2000, two_objects=0.1, threads=2
)

TRAIN = TrainConfig(
  steps=200,
  batch_size=2,
  trainable="temporal_",
  learning_rate=2e-3,
  warmup_steps=20,
  cooldown_steps=150,
  ema_decay=0.98,
  log_every=5,
  eval_every=0,
  eval_clips=4,
  eval_levels=4,
  save_every=1000,
  keep=1,
)


def experiment(stage: str, **changes) -> Experiment:
  """An experiment of the demo: what all stages share, then `changes`."""
  data = dataclasses.replace(DATA, **changes.pop("data"))
  train = dataclasses.replace(TRAIN, **changes.pop("train"))
  return Experiment(
    stage=stage,
    text=common.TINY_TEXT,
    diffusion=DiffusionConfig(),
    data=data,
    train=train,
    **changes,
  )


T2I = experiment(
  "t2i",
  model=IMAGE,
  data={"num_frames": 1, "resolution": SIDE},
  train={"steps": 280, "batch_size": 32, "trainable": ".*", "eval_clips": 64},
)

BASE = experiment(
  "base",
  model=common.inflated(IMAGE, TEMPORAL),
  data={"num_frames": 16, "resolution": SIDE},
  train={"steps": 320, "batch_size": 4, "eval_clips": 32},
)

BASE_REAL = experiment(
  "base",
  model=common.inflated(IMAGE, TEMPORAL),
  data={
    "num_frames": 80,
    "resolution": SIDE,
    "source": "files",
    "path": str(resources.files("lumiere_jax.data") / "assets/big_buck_bunny"),
    "held_out": 0.2,
  },
  train={
    "steps": 60,
    "learning_rate": 5e-4,
    "cooldown_steps": 40,
    "eval_clips": 2,
  },
  licence="trained on Big Buck Bunny, CC BY 3.0, Blender Foundation",
)

SSR_IMAGE_STAGE = experiment(
  "ssr_image",
  model=SSR_IMAGE,
  upscale=UPSCALE,
  data={"num_frames": 1, "resolution": SIDE * UPSCALE, "crop": CROP},
  train={"steps": 180, "batch_size": 16, "trainable": ".*", "eval_clips": 64},
)

SSR = experiment(
  "ssr",
  model=common.inflated(SSR_IMAGE, TEMPORAL),
  upscale=UPSCALE,
  data={"num_frames": 16, "resolution": SIDE * UPSCALE, "crop": CROP},
  train={
    "steps": 60,
    "batch_size": 4,
    "cooldown_steps": 45,
    "eval_clips": 16,
  },
)


def get_config(size: str = "base"):
  return common.choose(
    size,
    {
      "t2i": T2I,
      "base": BASE,
      "base_real": BASE_REAL,
      "ssr_image": SSR_IMAGE_STAGE,
      "ssr": SSR,
    },
  )
