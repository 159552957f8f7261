"""Compiles a stage for a TPU slice that is not here, and says what it takes.

python -m lumiere_jax.plan --config=configs/base.py --topology=v5p:4x4x4 \
    [--num_slices=2] [--job=train] [--fast] [--out=plan.json]

Needs `pip install 'lumiere_jax[tpu]'` and no TPU. Exits with 3 where the job
does not fit.
"""

import sys

from absl import flags

from lumiere_jax import cli
from lumiere_jax.config_files import define_config
from lumiere_jax.contrib.planning.jobs import JOBS
from lumiere_jax.contrib.planning.planner import PlanRequest, plan
from lumiere_jax.training.config import Experiment

TOO_LARGE_EXIT = 3


CONFIG = define_config(
  "config", "configs/base.py", "Stage and size, as for main."
)


TOPOLOGY = flags.DEFINE_string(
  "topology", "", "Slice: v5p:4x4x4, v5e:16x16, v6e:8x8, ..."
)


NUM_SLICES = flags.DEFINE_integer(
  "num_slices", 1, "Slices that a data-centre network joins."
)


JOB = flags.DEFINE_enum("job", "train", JOBS, "A training or sampling step.")


NUM_FRAMES = flags.DEFINE_integer(
  "num_frames", 0, "Of sampled videos; 0: 80, as in the paper."
)


FAST = flags.DEFINE_bool(
  "fast", False, "Compile faster; the program may be slower."
)


OUT = flags.DEFINE_string("out", "", "JSON file for all figures.")


def main(argv: list[str]) -> None:
  """Reads the flags and plans."""
  del argv
  config = cli.config_value(CONFIG)
  request = PlanRequest(
    config=flags.FLAGS["config"].config_filename,
    overrides=tuple(a for a in sys.argv[1:] if a.startswith("--config.")),
    topology=TOPOLOGY.value,
    num_slices=NUM_SLICES.value,
    job=JOB.value,
    num_frames=NUM_FRAMES.value,
    fast=FAST.value,
    out=OUT.value,
  )
  if not plan(Experiment.from_config(config), request):
    sys.exit(TOO_LARGE_EXIT)


if __name__ == "__main__":
  cli.run(main)
