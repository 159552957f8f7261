"""The shipped cascade (lumiere_jax/assets/demo): scenes of moving shapes, 80
frames of 32x32 pixels, then 128x128. launch/train_demo.sh trains it.

  t2i          images; every layer and the text encoder
  base         its temporal layers, on clips of 80 frames
  conditional  the pixel-conditioned base; the one that is shipped
  ssr_image    super-resolution of images, on crops
  ssr          its temporal layers, on crops of 16 frames

Every stage starts from the one before it (ssr_image only uses the text encoder
of t2i). Scores, hardware and times: docs/model_card.md.
"""

import dataclasses

from configs import common
from configs.conditional import TRAINABLE
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.config import TemporalConfig, UNetConfig
from lumiere_jax.stages.config import DiffusionConfig, SamplingConfig
from lumiere_jax.training.config import Experiment, TextConfig, TrainConfig

SIDE = 32
UPSCALE = 4
CROP = 64

# Patches of 2x2 pixels, and narrow at the finest level, which is slow on CPUs.
# Small enough to ship in a package.
IMAGE = UNetConfig(
  patch=2,
  channels=(48, 96, 128),
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
  patch=4,
  channels=(48, 64, 96),
  attention=("none", "none", "cross"),
  **common.UPSCALES,
)

# max_distance as in the shipped weights: 0 would be 19.
TEMPORAL = TemporalConfig(
  resample=(True, True), num_attentions=1, head_dim=32, max_distance=20
)
TEXT = TextConfig(max_length=48)
# A third of the clips have only a caption: the model must keep following it.
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
  steps=12_000,
  batch_size=128,
  trainable="temporal_",
  learning_rate=2e-3,
  decay="cosine",
  final_learning_rate=5e-5,
  warmup_steps=200,
  ema_decay=0.999,
  log_every=20,
  eval_every=0,
  eval_clips=0,
  save_every=1_000,
  save_minutes=10.0,
  keep=1,
)

# Few steps, for CPUs.
FAST = SamplingConfig(sampler="dpmpp_2m", steps=20, guidance_scale=3.0)
# The low-resolution input has colours and positions; only edges are missing.
FASTER = dataclasses.replace(
  FAST, steps=4, guidance_scale=1.0, log_snr_min=-3.0, log_snr_max=3.0
)


def experiment(stage: str, **changes) -> Experiment:
  """A stage with `changes` to the shared settings."""
  shared = {"text": TEXT, "diffusion": DiffusionConfig(), "defaults": FAST}
  return Experiment(
    stage=stage,
    data=dataclasses.replace(DATA, **changes.pop("data")),
    train=dataclasses.replace(TRAIN, **changes.pop("train")),
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
LONG = {"batch_size": 16, "learning_rate": 1.5e-3}
BASE = experiment(
  "base",
  model=common.inflated(IMAGE, TEMPORAL),
  data={"num_frames": 80},
  train={"steps": 9_000, **LONG},
)
CONDITIONAL = experiment(
  "conditional",
  model=dataclasses.replace(BASE.model, cond_channels=4),
  data={"num_frames": 80, "masks": MASKS},
  train={"steps": 9_000, "trainable": TRAINABLE, **LONG},
)
# A patch has 48 values and the network 48 channels: too few to pass on the
# noise that eps or v contain. Clean patches are simple. Training is limited to
# the low noise levels of sampling.
CLEAN = DiffusionConfig(prediction="x0", max_noise_level=0.2)

SSR_IMAGE_STAGE = experiment(
  "ssr_image",
  model=SSR_IMAGE,
  upscale=UPSCALE,
  diffusion=CLEAN,
  defaults=FASTER,
  data={"num_frames": 1, "resolution": SIDE * UPSCALE, "crop": CROP},
  train={"steps": 4_000, "batch_size": 64, "trainable": ".*"},
)

SSR = experiment(
  "ssr",
  model=common.inflated(SSR_IMAGE, TEMPORAL),
  upscale=UPSCALE,
  diffusion=CLEAN,
  defaults=FASTER,
  data={"num_frames": 16, "resolution": SIDE * UPSCALE, "crop": CROP},
  train={"steps": 1_500, **LONG},
)


def get_config(size: str = "base"):
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
