"""A style: a trained text-to-image model fine-tuned on a few images.

Its spatial layers are then interpolated with those of the video model (Lumiere,
section 4.1). The folder holds images with captions (see docs/training.md). End
every caption, and later the prompt, with a phrase for the style: "a teapot in
wooden sculpture style". Learning rates, steps and ranks are ours: the paper
uses published fine-tuned weights.

All sizes need --config.init_from=DIR (the t2i that the base was inflated from)
and --config.data.path=DIR (the images).

full: every layer of a t2i with IF-I-XL's architecture, at 128x128. The mesh is
  for a multiple of 16 chips. Never run at this scale. Needs
  --config.text.weights=DIR (T5 v1.1 xxl encoder).
lora: spatial adapters of rank 16 instead. Never run at this scale. Needs
  --config.text.weights=DIR.
shipped, shipped_lora: the same for the t2i of shipped.py; minutes on a CPU.
  Need --config.text.weights=DIR, the same as --config.init_from, because it
  trained its text encoder.
tiny, tiny_lora: the same for t2i.py:tiny; seconds on a CPU, for testing.

python -c "from lumiere_jax.data.style_folder import write_style_folder; \
    write_style_folder('out/pastel')"
python -m lumiere_jax.main --config=configs/style.py:tiny \
    --config.init_from=out/t2i --config.data.path=out/pastel --workdir=out/style
"""

import dataclasses

from configs import common, shipped, t2i
from lumiere_jax.parallel.mesh import MeshConfig
from lumiere_jax.training.config import Experiment, LoraConfig

# A placeholder that must be replaced: '' would silently train from scratch.
T2I = "A_TRAINED_T2I"


def style(start: Experiment, *, rank: int = 0, **train) -> Experiment:
  """The experiment that fine-tunes a t2i on a folder of images.

  With a rank, it trains spatial adapters instead of the weights.
  """
  return common.replace(
    start,
    init_from=T2I,
    text={"train": False},
    data={"source": "files"},
    train=train,
    lora=LoraConfig(rank=rank, target="spatial"),
  )


# A few images are overfitted soon: evaluate often, and keep the best state.
SHORT = {
  "steps": 1_000,
  "warmup_steps": 100,
  "ema_decay": 0.99,
  "log_every": 10,
  "eval_every": 100,
  "save_every": 200,
  "keep_best": 1,
}
PREVIEW = dataclasses.replace(common.PREVIEW, every=200)

FULL = dataclasses.replace(
  style(t2i.IF128, batch_size=64, **SHORT), preview=PREVIEW
)
LORA = dataclasses.replace(
  style(
    t2i.IF128,
    rank=16,
    batch_size=8,
    frozen_dtype="bfloat16",
    optimizer="adam",
    learning_rate=1e-4,
    **SHORT,
  ),
  mesh=MeshConfig(),
  preview=PREVIEW,
)

SHIPPED_SHORT = SHORT | {
  "steps": 600,
  "warmup_steps": 50,
  "batch_size": 32,
  "eval_clips": 64,
  "eval_levels": 4,
}
SHIPPED = style(shipped.T2I, learning_rate=3e-4, **SHIPPED_SHORT)
SHIPPED_LORA = style(shipped.T2I, rank=16, learning_rate=2e-3, **SHIPPED_SHORT)

TINY = style(t2i.TINY)
TINY_LORA = style(t2i.TINY, rank=4)


def get_config(size: str = "full"):
  return common.choose(
    size,
    {
      "full": FULL,
      "lora": LORA,
      "shipped": SHIPPED,
      "shipped_lora": SHIPPED_LORA,
      "tiny": TINY,
      "tiny_lora": TINY_LORA,
    },
  )
