"""Trains one stage.

python -m lumiere_jax.main --config=configs/base.py --workdir=DIR

With --help_config it lists the keys of the config. On several hosts: the same
command on each; see docs/launch.md.
"""

import json

from absl import flags

from lumiere_jax import cli
from lumiere_jax.config_files import define_config, print_help
from lumiere_jax.flags import Hosts, define, joined
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import resolve_shift
from lumiere_jax.training.loop import train
from lumiere_jax.training.noise_report import noise_summary
from lumiere_jax.training.workdir import check_workdir

CONFIG = define_config(
  "config",
  "configs/base.py",
  "Stage to train and its size: configs/base.py, configs/base.py:tiny, ...",
)
HELP_CONFIG = flags.DEFINE_bool(
  "help_config",
  False,
  "List every key of --config with its value, its default and what it means, "
  "and do not train.",
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  "",
  "Folder of the run; a run that it holds is resumed. Default: out/STAGE.",
)
SHOW_NOISE = flags.DEFINE_bool(
  "show_noise",
  False,
  "Print as JSON the log-SNRs that --config draws in training (deciles, from "
  "clean to noisy) and samples at, and do not train.",
)
HOSTS = define(Hosts)


def main(argv: list[str]) -> None:
  """Reads the flags and trains."""
  del argv
  if HELP_CONFIG.value:
    print_help(Experiment, cli.config_value(CONFIG))
    return
  experiment = Experiment.from_config(cli.config_value(CONFIG))
  if SHOW_NOISE.value:
    summary = noise_summary(resolve_shift(experiment))
    print(json.dumps(summary, indent=2))  # -Infinity is pure noise
    return
  workdir = check_workdir(WORKDIR.value or f"out/{experiment.stage}")
  with joined(HOSTS):
    train(experiment, workdir)


if __name__ == "__main__":
  cli.run(main)
