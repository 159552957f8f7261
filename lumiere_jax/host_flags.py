"""The flags by which several processes become one run."""

import contextlib

from absl import flags

from lumiere_jax.parallel import hosts

Flags = dict[str, flags.FlagHolder]


def host_flags() -> Flags:
  """Defines them; read them by `joined`."""
  return {
    "coordinator": flags.DEFINE_string(
      "coordinator",
      None,
      "HOST:PORT of process 0, where several processes are started by hand; "
      "default: LUMIERE_COORDINATOR, else what SLURM or the TPU says, else "
      "alone.",
    ),
    "num_processes": flags.DEFINE_integer(
      "num_processes",
      None,
      "Processes of the run, with --coordinator; default: "
      "LUMIERE_NUM_PROCESSES.",
    ),
    "process_id": flags.DEFINE_integer(
      "process_id",
      None,
      "Number of this process, from 0; default: LUMIERE_PROCESS_ID, else "
      "JOB_COMPLETION_INDEX.",
    ),
  }


def joined(holders: Flags) -> contextlib.AbstractContextManager[None]:
  """`hosts.joined` as the flags say."""
  return hosts.joined(**{name: flag.value for name, flag in holders.items()})
