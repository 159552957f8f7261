"""The next cascade to ship, in training: see README.md beside this file.

  t2i          images, every layer and the text encoder: done, t2i/
  base         its temporal layers, on clips of 16 frames
  conditional  80 frames, and masked video; samples every task
  ssr_image    super-resolution of images, on crops
  ssr          its temporal layers, on crops of 16 frames

What is not said here is as in configs/shipped.py, which it replaces together
with the first better bundle.
"""

from dataclasses import replace

from configs import common, shipped
from lumiere_jax.models.config import TemporalConfig

# Two wide levels on patches of 4x4 pixels: a CPU is slow where positions are
# many and channels few.
IMAGE = replace(
  shipped.IMAGE,
  patch=4,
  channels=(96, 128),
  num_res_blocks=(1, 2),
  attention=("none", "self"),
)
SSR_IMAGE = replace(
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

# A patch has 48 values and the network 96 channels: too few to pass on the
# noise that eps or v contain. Clean patches are simple.
CLEAN = replace(shipped.T2I.diffusion, prediction="x0", loss_weight="v")
CLEAN = replace(CLEAN, min_snr_gamma=10.0)
# Motion is decided where noise is strongest.
MOVING = replace(CLEAN, shift=-2.0)
# Super-resolution trains only at the low noise levels that it is sampled with.
LITTLE = replace(CLEAN, max_noise_level=0.2)

TRAIN = {
  "steps": 4_500,
  "batch_size": 64,
  "optimizer": "muon",
  "learning_rate": 2e-3,
  "muon_rms": 0.5,
  "decay": "constant",
  "final_learning_rate": 0.0,
  "warmup_steps": 100,
  "cooldown_steps": 1_200,
  "eval_every": 1_000,
  "eval_clips": 16,
}


def stage(parent, *, data=(), train=(), **changes):
  """A stage of configs/shipped.py with changes."""
  return replace(
    parent,
    data=replace(parent.data, **dict(data)),
    train=replace(parent.train, **TRAIN | dict(train)),
    **changes,
  )


T2I = stage(shipped.T2I, model=IMAGE, diffusion=CLEAN)

BASE = stage(
  shipped.BASE,
  model=common.inflated(IMAGE, TEMPORAL),
  diffusion=MOVING,
  data={"num_frames": 16, "num_clips": 200_000},
  train={"steps": 6_000, "batch_size": 32},
)

CONDITIONAL = stage(
  shipped.CONDITIONAL,
  model=replace(BASE.model, cond_channels=4),
  diffusion=MOVING,
  train={"steps": 8_000, "batch_size": 8},
)

SSR_IMAGE_STAGE = stage(
  shipped.SSR_IMAGE_STAGE,
  model=SSR_IMAGE,
  diffusion=LITTLE,
  train={"steps": 6_000},
)

SSR = stage(
  shipped.SSR,
  model=common.inflated(SSR_IMAGE, SSR_TEMPORAL),
  diffusion=LITTLE,
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
