"""Text-to-image model: one-frame clips, every layer trained.

full: IF-I-XL's network on 128x128 pictures with Imagen's optimisation
  (arXiv 2205.11487, appendix F.1: batch 2048, 2.5 M steps). Never run at this
  scale. Needs --config.text.weights=DIR (T5 v1.1 xxl encoder) and
  --config.data.path=DIR.
tiny: seconds on a CPU, to see that everything works.

python -m lumiere_jax.main --config=configs/t2i.py:tiny --workdir=out/t2i
"""

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.pipelines.stage import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

FULL = Experiment(
  stage="t2i",
  model=common.IF_I_XL,
  text=common.T5_XXL,
  diffusion=DiffusionConfig(prediction="eps"),
  data=DataConfig(num_frames=1),
  train=TrainConfig(steps=2_500_000, batch_size=2048, trainable=".*"),
  preview=common.PREVIEW,
)

TINY = Experiment(
  stage="t2i",
  model=common.TINY,
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=common.tiny_data(num_frames=1, resolution=16),
  train=common.tiny_train(trainable=".*"),
)


def get_config(size: str = "full"):
  return common.choose(size, {"full": FULL, "tiny": TINY})
