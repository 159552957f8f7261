"""Trains one stage.

python -m lumiere_jax.main --config=configs/base.py --workdir=DIR

On several hosts: the same command on each; see docs/launch.md.
"""

from absl import flags

from lumiere_jax import cli
from lumiere_jax.config_files import define_config
from lumiere_jax.flags import host_flags, joined
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import resolve_shift
from lumiere_jax.training.loop import train
from lumiere_jax.training.noise_report import show_noise
from lumiere_jax.training.workdir import check_workdir

CONFIG = define_config(
  "config",
  "configs/base.py",
  "Stage to train and its size: configs/base.py, configs/base.py:tiny, ...",
)


WORKDIR = flags.DEFINE_string(
  "workdir",
  "",
  "Folder of the run, gone on from if it holds one; default out/STAGE.",
)


SHOW_NOISE = flags.DEFINE_bool(
  "show_noise",
  False,
  "Print as JSON which noise levels --config draws in training (deciles, from "
  "clean to noisy) and samples at, in log-SNR, and do not train.",
)


HOSTS = host_flags()


def main(argv: list[str]) -> None:
  """Reads the flags and trains."""
  del argv
  experiment = Experiment.from_config(cli.config_value(CONFIG))
  if SHOW_NOISE.value:
    show_noise(resolve_shift(experiment))
    return
  workdir = check_workdir(WORKDIR.value or f"out/{experiment.stage}")
  with joined(HOSTS):
    train(experiment, workdir)


if __name__ == "__main__":
  cli.run(main)
