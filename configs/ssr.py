"""Super-resolution of videos: the inflated image model, on short windows.

full: 128 -> 1024 in windows of 16 frames (the paper's length is not published),
  sampled with an overlap of 2 by MultiDiffusion (Lumiere, section 3.2). Cuts
  and still videos are filtered as in base.py. Trains on crops, with mesh and
  micro-batches for 64 TPU v5p chips (v5p:4x4x4); other slices, and sampling of
  whole frames: docs/scale.md. Compiled for them, never run at this scale. Needs
  --config.init_from=DIR (a trained ssr_image), --config.text.weights=DIR and
  --config.data.path=DIR.
if: the same with IF-II-L's network and diffusion process. Needs such an
  ssr_image: imported, or fine-tuned by configs/ssr_image.py:if.
tiny: seconds on a CPU; needs --config.init_from=DIR or =scratch.
if_tiny: the same on a stand-in for IF-II.

python -m lumiere_jax.main --config=configs/ssr.py:tiny \
    --config.init_from=out/ssr_image --workdir=out/ssr
"""

import dataclasses

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.config import TemporalConfig
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

TEMPORAL = TemporalConfig(resample=(False, False, True, True))

FULL = Experiment(
  stage="ssr",
  upscale=8,
  model=common.inflated(common.SSR_1024, TEMPORAL),
  execution=common.on_chips(common.SSR_1024),
  text=common.T5_XXL,
  diffusion=common.for_videos(DiffusionConfig(prediction="v")),
  data=DataConfig(num_frames=16, resolution=1024, crop=256, **common.FOOTAGE),
  train=TrainConfig(
    steps=500_000,
    batch_size=256,
    accumulate=4,
    trainable="temporal_",
    frozen_dtype="bfloat16",
  ),
  mesh=MeshConfig(fsdp=16),
  preview=common.PREVIEW,
)

IF = dataclasses.replace(
  FULL,
  model=common.inflated(common.IF_II_L, TEMPORAL),
  execution=common.on_chips(common.IF_II_L),
  text=common.IF_TEXT,
  diffusion=common.for_videos(common.IF_DIFFUSION),
)

TINY = Experiment(
  stage="ssr",
  upscale=2,
  model=common.inflated(common.TINY_SSR, common.TINY_TEMPORAL),
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=common.tiny_data(num_frames=8, resolution=32, crop=16),
  train=common.tiny_train(trainable="temporal_"),
  mesh=common.TINY_MESH,
)

IF_TINY = dataclasses.replace(
  TINY,
  model=common.inflated(common.IF_TINY_SSR, common.TINY_TEMPORAL),
  text=common.IF_TINY_TEXT,
  diffusion=common.IF_DIFFUSION,
)


def get_config(size: str = "full"):
  sizes = {"full": FULL, "if": IF, "tiny": TINY, "if_tiny": IF_TINY}
  return common.choose(size, sizes)
