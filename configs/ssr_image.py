"""Super-resolution of images, every layer trained on crops.

full: 128 -> 1024 on crops of 256 pixels (Imagen, appendix F.3, trains its last
  stage on crops of 256 too). The mesh is for a multiple of 16 chips; neither
  planned nor run at this scale. Needs
  --config.text.weights=DIR (T5 v1.1 xxl encoder) and --config.data.path=DIR.
if: IF-II-L, which was trained for 64 -> 256, fine-tuned on such crops, with its
  self-attention at the two coarsest levels. Never run at this scale.
  Needs the above and --config.init_from=DIR (IF-II-L as a bundle).
tiny: seconds on a CPU.
if_tiny: the same on a stand-in for IF-II.

python -m lumiere_jax.main --config=configs/ssr_image.py:tiny \
    --workdir=out/ssr_image
"""

import dataclasses

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

FULL = Experiment(
  stage="ssr_image",
  upscale=8,
  model=common.SSR_1024,
  execution=common.on_chips(common.SSR_1024),
  text=common.T5_XXL,
  diffusion=DiffusionConfig(prediction="v"),
  data=DataConfig(num_frames=1, resolution=1024, crop=256),
  train=TrainConfig(steps=2_500_000, batch_size=2048, trainable=".*"),
  mesh=MeshConfig(fsdp=16),
  preview=common.PREVIEW,
)

IF = dataclasses.replace(
  FULL,
  model=common.IF_II_L,
  execution=common.on_chips(common.IF_II_L),
  text=common.IF_TEXT,
  diffusion=common.IF_DIFFUSION,
  train=common.FINE_TUNE,
)

TINY = Experiment(
  stage="ssr_image",
  upscale=2,
  model=common.TINY_SSR,
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=common.tiny_data(num_frames=1, resolution=32, crop=16),
  train=common.tiny_train(trainable=".*"),
  mesh=common.TINY_MESH,
)

IF_TINY = dataclasses.replace(
  TINY,
  model=common.IF_TINY_SSR,
  text=common.IF_TINY_TEXT,
  diffusion=common.IF_DIFFUSION,
)


def get_config(size: str = "full"):
  sizes = {"full": FULL, "if": IF, "tiny": TINY, "if_tiny": IF_TINY}
  return common.choose(size, sizes)
