"""Super-resolution of videos: the picture model inflated, on short windows.

full: 128 -> 1024 in windows of 16 frames (the paper's length is not
  published), to be sampled with an overlap of 2 by MultiDiffusion (Lumiere,
  section 3.2). Never run at this scale. Needs --config.init_from=DIR (a
  trained ssr_image), --config.text.weights=DIR and --config.data.path=DIR.
tiny: seconds on a CPU; needs --config.init_from=DIR or =scratch.

python -m lumiere_jax.main --config=configs/ssr.py:tiny \
    --config.init_from=out/ssr_image --workdir=out/ssr
"""

from configs import common
from lumiere_jax.data.config import DataConfig
from lumiere_jax.models.unet import TemporalConfig
from lumiere_jax.pipelines.stage import DiffusionConfig
from lumiere_jax.training.config import Experiment, TrainConfig

FULL = Experiment(
  stage="ssr",
  upscale=8,
  model=common.inflated(
    common.SSR_1024, TemporalConfig(resample=(False, False, True, True))
  ),
  text=common.T5_XXL,
  diffusion=DiffusionConfig(prediction="v"),
  data=DataConfig(num_frames=16, resolution=1024, crop=256),
  train=TrainConfig(steps=500_000, batch_size=256, trainable="temporal_"),
  preview=common.PREVIEW,
)

TINY = Experiment(
  stage="ssr",
  upscale=2,
  model=common.inflated(common.TINY_SSR, common.TINY_TEMPORAL),
  text=common.TINY_TEXT,
  diffusion=DiffusionConfig(),
  data=common.tiny_data(num_frames=8, resolution=32, crop=16),
  train=common.tiny_train(trainable="temporal_"),
)


def get_config(size: str = "full"):
  return common.choose(size, {"full": FULL, "tiny": TINY})
