"""The next cascade to ship, in training: see README.md beside this file.

  t2i          images, every layer and the text encoder: done, t2i/
  base         its temporal layers, on clips of 16 frames
  conditional  80 frames, and masked video; samples every task
  ssr_image    super-resolution of images, on crops
  ssr          its temporal layers, on crops of 16 frames

It replaces configs/shipped.py together with the first better bundle.
"""

import dataclasses

from configs import common
from configs.conditional import TRAINABLE
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.config import TemporalConfig, UNetConfig
from lumiere_jax.stages.config import DiffusionConfig, SamplingConfig
from lumiere_jax.training.config import (
  Experiment,
  TextConfig,
  TrainConfig,
)

SIDE = 32
UPSCALE = 4
CROP = 64

# Two wide levels on patches of 4x4 pixels: a CPU is slow where positions are
# many and channels few.
IMAGE = UNetConfig(
  patch=4,
  channels=(96, 128),
  num_res_blocks=(1, 2),
  attention=("none", "self"),
  text_dim=64,
  text_channels=64,
  pool_heads=4,
  head_dim=32,
  norm_groups=16,
  activation="silu",
)

SSR_IMAGE = dataclasses.replace(
  IMAGE,
  channels=(64, 96),
  attention=("none", "cross"),
  in_channels=6,
  noise_conditioned=True,
  activate_embedding_once=True,
  skip_scale=0.7071,
)

# Moving left looks like moving right to the image model, so temporal attention
# sees the text.
TEMPORAL = TemporalConfig(
  resample=(True,), num_attentions=2, head_dim=32, text=True
)
SSR_TEMPORAL = TemporalConfig(resample=(True,), num_attentions=1, head_dim=32)

TEXT = TextConfig(max_length=48)

# A third of the clips say nothing but their caption, or text would be
# forgotten.
MASKS = (
  "none:10 first_frame:5 random_boxes:2 moving_boxes:2 border:2 region:3 "
  "first_k:2 first_last:1 random_frames:1"
)

DATA = DataConfig(
  source="procedural",
  num_clips=20_000,
  two_objects=0.1,
  moments=0.5,
  resolution=SIDE,
  threads=2,
)

TRAIN = TrainConfig(
  steps=4_500,
  batch_size=64,
  trainable="temporal_",
  optimizer="muon",
  learning_rate=2e-3,
  muon_rms=0.5,
  warmup_steps=100,
  cooldown_steps=1_200,
  ema_decay=0.999,
  log_every=20,
  eval_every=1_000,
  eval_clips=16,
  save_every=1_000,
  save_minutes=10.0,
  keep=1,
)

# A patch holds 48 numbers and a network of 96 channels has little room to hand
# on the noise, which eps and v would have to tell. Clean patches are simple.
CLEAN = DiffusionConfig(prediction="x0", loss_weight="v", min_snr_gamma=10.0)
# What moves where is decided where noise is most.
MOVING = dataclasses.replace(CLEAN, shift=-2.0)
# Super-resolution learns the little noise alone that it is sampled with.
LITTLE = dataclasses.replace(CLEAN, max_noise_level=0.2)

# Few steps: for a CPU.
FAST = SamplingConfig(sampler="dpmpp_2m", steps=20, guidance_scale=3.0)
# Colours and places are in the low resolution; edges are what is left to find.
FASTER = dataclasses.replace(
  FAST, steps=4, guidance_scale=1.0, log_snr_min=-3.0, log_snr_max=3.0
)


def experiment(stage: str, **changes) -> Experiment:
  """A stage: what all of them share, then `changes`."""
  data = dataclasses.replace(DATA, **changes.pop("data"))
  train = dataclasses.replace(TRAIN, **changes.pop("train"))
  shared = {"text": TEXT, "diffusion": CLEAN, "defaults": FAST}
  return Experiment(
    stage=stage,
    data=data,
    train=train,
    licence="Apache-2.0",
    **(shared | changes),
  )


T2I = experiment(
  "t2i",
  model=IMAGE,
  text=dataclasses.replace(TEXT, train=True),
  data={"num_frames": 1},
  train={"trainable": ".*"},
)

BASE = experiment(
  "base",
  model=common.inflated(IMAGE, TEMPORAL),
  diffusion=MOVING,
  data={"num_frames": 16, "num_clips": 200_000},
  train={"steps": 6_000, "batch_size": 32},
)

CONDITIONAL = experiment(
  "conditional",
  model=dataclasses.replace(BASE.model, cond_channels=4),
  diffusion=MOVING,
  data={"num_frames": 80, "masks": MASKS},
  train={"steps": 8_000, "batch_size": 8, "trainable": TRAINABLE},
)

SSR_IMAGE_STAGE = experiment(
  "ssr_image",
  model=SSR_IMAGE,
  upscale=UPSCALE,
  diffusion=LITTLE,
  defaults=FASTER,
  data={"num_frames": 1, "resolution": SIDE * UPSCALE, "crop": CROP},
  train={"steps": 6_000, "trainable": ".*"},
)

SSR = experiment(
  "ssr",
  model=common.inflated(SSR_IMAGE, SSR_TEMPORAL),
  upscale=UPSCALE,
  diffusion=LITTLE,
  defaults=FASTER,
  data={"num_frames": 16, "resolution": SIDE * UPSCALE, "crop": CROP},
  train={"steps": 2_000, "batch_size": 8},
)


def get_config(size: str = "base"):
  """The config of a stage."""
  return common.choose(
    size,
    {
      "t2i": T2I,
      "base": BASE,
      "conditional": CONDITIONAL,
      "ssr_image": SSR_IMAGE_STAGE,
      "ssr": SSR,
    },
  )
