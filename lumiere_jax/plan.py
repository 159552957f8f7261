"""Compiles a stage for a TPU slice without one, and reports what it takes.

python -m lumiere_jax.plan --config=configs/base.py --topology=v5p:4x4x4 \
    [--num_slices=2] [--job=train] [--fast] [--out=plan.json]

Needs `pip install 'lumiere_jax[tpu]'` and no TPU. Exits with 3 where the job
does not fit.
"""

import sys

from absl import flags
from ml_collections import config_flags

from lumiere_jax import cli
from lumiere_jax.config_files import define_config
from lumiere_jax.contrib.planning.planner import PlanRequest, plan
from lumiere_jax.flags import define, read
from lumiere_jax.training.config import Experiment

TOO_LARGE_EXIT = 3
CONFIG = define_config(
  "config", "configs/base.py", "Stage and size, as for main."
)
REQUEST = define(PlanRequest)


def main(argv: list[str]) -> None:
  """Reads the flags and plans."""
  del argv
  config = cli.config_value(CONFIG)
  request = read(
    PlanRequest,
    REQUEST,
    config=config_flags.get_config_filename(flags.FLAGS["config"]),
    overrides=tuple(a for a in sys.argv[1:] if a.startswith("--config.")),
  )
  if not plan(Experiment.from_config(config), request):
    sys.exit(TOO_LARGE_EXIT)


if __name__ == "__main__":
  cli.run(main)
