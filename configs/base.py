"""Space-Time U-Net: the inflated text-to-image model, temporal layers trained.

full: 80 frames of 128x128 at 16 fps (Lumiere, section 3.1). Videos are split at
  scene cuts (config.data.scene_cuts=15), and still ones dropped
  (config.data.min_motion=0.5). Batch, learning rate and steps are ours, as the
  paper gives none. Mesh and micro-batches are for 64 TPU v5p chips
  (v5p:4x4x4), four per clip; other slices: docs/scale.md. Compiled for them,
  never run at this scale. Needs
  --config.init_from=DIR (a t2i with IF-I-XL's architecture, trained or
  imported), --config.text.weights=DIR (T5 v1.1 xxl encoder) and
  --config.data.path=DIR.
tiny: seconds on a CPU; needs --config.init_from=DIR or =scratch.
if_tiny: the same on a stand-in for IF.

python -m lumiere_jax.main --config=configs/base.py:tiny \
    --config.init_from=out/t2i --workdir=out/base
"""

import dataclasses

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.config import TemporalConfig
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

FULL = Experiment(
  stage="base",
  model=common.inflated(
    common.IF_I_XL, TemporalConfig(resample=(True, True, True))
  ),
  execution=common.on_chips(common.IF_I_XL),
  text=common.IF_TEXT,
  diffusion=common.for_videos(common.IF_DIFFUSION),
  data=DataConfig(num_frames=80, **common.FOOTAGE),
  train=TrainConfig(
    steps=500_000,
    batch_size=256,
    accumulate=16,
    trainable="temporal_",
    frozen_dtype="bfloat16",
  ),
  mesh=MeshConfig(fsdp=16, space=4),
  preview=common.PREVIEW,
)

TINY = Experiment(
  stage="base",
  model=common.inflated(common.TINY, common.TINY_TEMPORAL),
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=common.tiny_data(num_frames=16, resolution=16),
  train=common.tiny_train(trainable="temporal_"),
  mesh=common.TINY_MESH,
)

IF_TINY = dataclasses.replace(
  TINY,
  model=common.inflated(common.IF_TINY, common.TINY_TEMPORAL),
  text=common.IF_TINY_TEXT,
  diffusion=common.IF_DIFFUSION,
  data=common.tiny_data(num_frames=16, resolution=32),
)


def get_config(size: str = "full"):
  return common.choose(size, {"full": FULL, "tiny": TINY, "if_tiny": IF_TINY})
