"""Trains one stage.

python -m lumiere_jax.main --config=configs/base.py --workdir=DIR

On several hosts: the same command on each; see docs/launch.md.
"""

from absl import flags
from ml_collections import config_flags

from lumiere_jax import cli
from lumiere_jax.parallel import hosts
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train
from lumiere_jax.training.workdir import check_workdir

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
COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0, where several processes are started by hand; "
  "default: LUMIERE_COORDINATOR, else what SLURM or the TPU says, else alone.",
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Processes of the run, with --coordinator; default: LUMIERE_NUM_PROCESSES.",
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id",
  None,
  "Number of this process, from 0; default: LUMIERE_PROCESS_ID, else "
  "JOB_COMPLETION_INDEX.",
)


def main(argv: list[str]) -> None:
  """Reads the flags and trains."""
  del argv
  experiment = Experiment.from_config(cli.config_value(CONFIG))
  workdir = check_workdir(WORKDIR.value or f"out/{experiment.stage}")
  with hosts.joined(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value):
    train(experiment, workdir)


if __name__ == "__main__":
  cli.run(main)
