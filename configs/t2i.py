"""Text-to-image model: one-frame clips, every layer trained.

full: DeepFloyd IF-I-XL's network and process on 128x128 images, with
  Imagen's optimisation (arXiv 2205.11487, appendix F.1: batch 2048, 2.5 M
  steps). The mesh is for a multiple of 16 chips; neither planned nor run at
  this scale. Needs --config.text.weights=DIR (T5 v1.1 xxl encoder) and
  --config.data.path=DIR.
if128: IF-I-XL, which was trained at 64x64, fine-tuned to 128x128. Batch,
  learning rate and steps are ours. Never run at this scale. Needs the above and
  --config.init_from=DIR (IF-I-XL as a bundle, see lumiere_jax/convert.py).
tiny: seconds on a CPU, for testing.
if_tiny: the same for if128, on a stand-in for IF.

python -m lumiere_jax.main --config=configs/t2i.py:tiny --workdir=out/t2i
"""

import dataclasses

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.stages.config import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

FULL = Experiment(
  stage="t2i",
  model=common.IF_I_XL,
  execution=common.on_chips(common.IF_I_XL),
  text=common.IF_TEXT,
  diffusion=common.IF_DIFFUSION,
  data=DataConfig(num_frames=1),
  train=TrainConfig(steps=2_500_000, batch_size=2048, trainable=".*"),
  mesh=MeshConfig(fsdp=16),
  preview=common.PREVIEW,
)

IF128 = dataclasses.replace(FULL, train=common.FINE_TUNE)

TINY = Experiment(
  stage="t2i",
  model=common.TINY,
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=common.tiny_data(num_frames=1, resolution=16),
  train=common.tiny_train(trainable=".*"),
  mesh=common.TINY_MESH,
)

# At 32 pixels instead of 16.
IF_TINY = dataclasses.replace(
  TINY,
  model=common.IF_TINY,
  text=common.IF_TINY_TEXT,
  diffusion=common.IF_DIFFUSION,
  data=common.tiny_data(num_frames=1, resolution=32),
)


def get_config(size: str = "full"):
  sizes = {"full": FULL, "if128": IF128, "tiny": TINY, "if_tiny": IF_TINY}
  return common.choose(size, sizes)
