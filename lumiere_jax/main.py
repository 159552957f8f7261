"""Trains one stage.

python -m lumiere_jax.main --config=configs/base.py --workdir=DIR
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from lumiere_jax import cli
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file(
  "config",
  "configs/base.py",
  "Stage to train and its size: configs/base.py, configs/base.py:tiny, ...",
  lock_config=True,
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  "",
  "Folder of the run, gone on from if it holds one; default out/STAGE.",
)


def main(argv: list[str]) -> None:
  """Reads the flags and trains."""
  del argv
  experiment = Experiment.from_config(cli.config_value(CONFIG))
  train(experiment, Path(WORKDIR.value or f"out/{experiment.stage}"))


if __name__ == "__main__":
  cli.run(main)
