"""Several processes become one run: the start and the end of jax.distributed.

Processes find each other, the first of these that applies:

1. by the flags or the environment: LUMIERE_COORDINATOR,
   LUMIERE_NUM_PROCESSES and LUMIERE_PROCESS_ID (in an indexed Kubernetes job
   JOB_COMPLETION_INDEX);
2. by SLURM, by GKE's TPU environment, by the metadata of a Cloud TPU: JAX
   reads these itself, here is only decided whether to ask it;
3. not at all: a single process.
"""

import atexit
from collections.abc import Iterator, Mapping
import contextlib
import importlib.util
import os
import re
import socket
import sys
import time
from typing import Any

import jax

from lumiere_jax.errors import UserError, option

WAIT_S = 300.0
"""Seconds that processes wait for each other at the start."""


SLURM = (
  *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
  *("SLURM_PROCID", "SLURM_LOCALID"),
)
"""What JAX needs to know a SLURM step by; srun sets all of it."""


@contextlib.contextmanager
def joined(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """Joins the other processes of a run for the block; see `start`.

  A process that fails in the block ends without waiting for the others: they
  may be waiting for it.
  """
  start(coordinator, num_processes, process_id)
  try:
    yield
  except BaseException as error:
    if jax.distributed.is_initialized():
      atexit.register(_leave, 2 if isinstance(error, UserError) else 1)
    raise
  stop()


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  wait_s: float = WAIT_S,
) -> bool:
  """Joins the other processes; must come before anything touches a device.

  Args:
    coordinator: "HOST:PORT" where process 0 can be reached and listens; None:
      found out, as are the next two. All three are given, or none.
    num_processes: of the run, at least 1.
    process_id: of this process, from 0.
    wait_s: seconds after which it is given up.

  Returns:
    Whether there are others to join; if not, nothing was done.

  Raises:
    UserError: the values are incomplete or wrong, the port is taken, or the
      coordinator does not answer in time. (Process 0 is ended by JAX, with
      exit code 134, where others do not come in time.)
  """
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  arguments = arguments_of_jax(given, os.environ)
  if arguments is None:
    return False
  if "coordinator_address" in arguments:
    _check_coordinator(wait_s, **arguments)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      **arguments, initialization_timeout=max(int(wait_s), 1)
    )
  except (ValueError, RuntimeError, OSError) as error:
    raise UserError(
      "",
      f"the other processes of the run were not found ({error})",
      f"give {option('coordinator')}, {option('num_processes')} and "
      f"{option('process_id')}, or, on a TPU that is alone, set "
      "TPU_SKIP_MDS_QUERY=1",
    ) from error
  return True


def stop() -> None:
  """Waits for the others to end as well; nothing where `start` did nothing."""
  try:
    jax.distributed.shutdown()
  except RuntimeError as error:  # the work is done: what is left is courtesy
    print(f"warning: leaving the other processes: {error}", file=sys.stderr)


def arguments_of_jax(
  given: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, Any] | None:
  """Arguments for `jax.distributed.initialize`; None: a single process.

  Args:
    given: flag -> value, None where it was not given: `coordinator`,
      `num_processes`, `process_id`.
    environ: the environment.

  Raises:
    UserError: as `start`.
  """
  values = {
    name: environ.get(f"LUMIERE_{name.upper()}") if value is None else value
    for name, value in given.items()
  }
  if values["coordinator"] and values["process_id"] is None:
    values["process_id"] = environ.get("JOB_COMPLETION_INDEX")
  if any(value not in (None, "") for value in values.values()):
    return _explicit(values)
  if _tasks_of_slurm(environ) > 1:
    # JAX gives a task of SLURM one GPU; a task alone on its node takes all.
    alone = re.fullmatch(
      r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    )
    return {"local_device_ids": []} if alone else {}
  return {} if _on_tpus(environ) else None


def _explicit(values: Mapping[str, Any]) -> dict[str, Any]:
  missing = [k for k, value in values.items() if value in (None, "")]
  if missing:
    raise UserError(
      "",
      f"{option(missing[0])} (or LUMIERE_{missing[0].upper()}) is missing",
      "processes that are started by hand need "
      f"{option('coordinator')}=HOST:PORT, {option('num_processes')} "
      f"and {option('process_id')}, or none of them",
    )
  count = _integer("num_processes", values["num_processes"], 1)
  number = _integer("process_id", values["process_id"], 0)
  if number >= count:
    raise UserError(
      option("process_id", number),
      f"is too large for {option('num_processes')}={count}",
      f"processes count from 0 to {count - 1}",
    )
  _address(values["coordinator"])
  return {
    "coordinator_address": values["coordinator"],
    "num_processes": count,
    "process_id": number,
    "cluster_detection_method": "deactivate",
  }


def _integer(name: str, value: Any, least: int) -> int:
  with contextlib.suppress(ValueError):
    if int(value) >= least:
      return int(value)
  raise UserError(
    option(name, value), f"must be a whole number from {least} on"
  )


def _address(coordinator: str) -> tuple[str, int]:
  """Host and port."""
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(
      option("coordinator", coordinator),
      "has no host or no port",
      "give HOST:PORT, e.g. 10.0.0.2:8476",
    )
  return host.strip("[]"), int(port)


def _tasks_of_slurm(environ: Mapping[str, str]) -> int:
  """Tasks of the step this process belongs to; 0: not one of SLURM's.

  A shell that salloc opens has the tasks of the job, but is a step of one.
  """
  if not all(name in environ for name in SLURM):
    return 0
  return int(environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"]))


def _on_tpus(environ: Mapping[str, str]) -> bool:
  """Whether TPUs are here, wanted, and perhaps those of several hosts."""
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get(
    "TPU_WORKER_HOSTNAMES", ""
  )
  slices = environ.get("MEGASCALE_NUM_SLICES", "1")
  if "," in hosts or slices not in ("", "1"):
    return True
  if "TPU_PROCESS_ADDRESSES_PATH" in environ:  # JAX 0.11.2 reads that file
    return True
  # JAX sets this, at its import, where the machine has no TPU chips.
  if environ.get("TPU_SKIP_MDS_QUERY") is not None:
    return False
  return importlib.util.find_spec("libtpu") is not None


def _check_coordinator(
  wait_s: float,
  *,
  coordinator_address: str,
  num_processes: int,
  process_id: int,
  **others: Any,
) -> None:
  """Tries the port: JAX would not raise, but end the process by a signal."""
  del others
  host, port = _address(coordinator_address)
  if process_id == 0:
    with contextlib.closing(socket.socket()) as listener:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        listener.bind(("", port))
      except OSError as error:
        raise UserError(
          f"{option('coordinator')}={coordinator_address}:",
          f"port {port} cannot be opened ({error.strerror})",
          "take another",
        ) from error
    if num_processes > 1:
      print(
        f"process 0 waits for {num_processes - 1} more at "
        f"{coordinator_address}, at most {wait_s:g} s",
        file=sys.stderr,
      )
    return
  end = time.monotonic() + wait_s
  while True:
    try:
      socket.create_connection((host, port), timeout=5).close()
      return
    except OSError as error:  # names of pods are known only after a while
      if time.monotonic() > end:
        raise UserError(
          option("coordinator", coordinator_address),
          f"did not answer within {wait_s:g} s ({error.strerror or error})",
          "is process 0 running, and is this where it can be reached?",
        ) from error
      time.sleep(min(0.5, wait_s))


def _leave(code: int) -> None:
  """Ends the process; JAX's own exit would first wait for the others."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
