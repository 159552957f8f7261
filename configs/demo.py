"""A few steps of every shipped stage on real video: `make demo`.

Uses the six packaged clips of Big Buck Bunny (CC BY 3.0, Blender Foundation).
This shows that each stage trains on video files; so small a network does not
learn to generate such videos in minutes.

python -m lumiere_jax.main --config=configs/demo.py:base --workdir=out/demo/base
"""

from importlib import resources

from configs import common, shipped
from lumiere_jax.storage.bundle import SHIPPED
from lumiere_jax.training.config import Experiment

CLIPS = str(resources.files("lumiere_jax.data") / "assets/big_buck_bunny")

BRIEF = {
  "steps": 4,
  "batch_size": 2,
  "learning_rate": 1e-4,
  "decay": "constant",
  "warmup_steps": 1,
  "log_every": 1,
}


def brief(start: Experiment, num_frames: int) -> Experiment:
  """A few more steps from the shipped weights of a stage."""
  return common.replace(
    start,
    init_from=SHIPPED,
    text={"weights": SHIPPED, "train": False},
    data={"num_frames": num_frames, "source": "files", "path": CLIPS},
    train=BRIEF,
    licence="trained on Big Buck Bunny, CC BY 3.0, Blender Foundation",
  )


STAGES = {
  "t2i": brief(shipped.T2I, 1),
  "base": brief(shipped.BASE, 16),
  "conditional": brief(shipped.CONDITIONAL, 16),
  "ssr_image": brief(shipped.SSR_IMAGE_STAGE, 1),
  "ssr": brief(shipped.SSR, 16),
}


def get_config(size: str = "base"):
  return common.choose(size, STAGES)
