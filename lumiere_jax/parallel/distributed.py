"""Start and end of multi-process runs (jax.distributed).

Processes find each other by the first of these that applies:

1. options or environment: LUMIERE_COORDINATOR, LUMIERE_NUM_PROCESSES and
   LUMIERE_PROCESS_ID (in an indexed Kubernetes job JOB_COMPLETION_INDEX);
2. SLURM, GKE's TPU environment or Cloud TPU metadata: JAX reads these itself,
   this module only decides whether to let it;
3. otherwise: a single process.
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
"""Seconds that processes wait for each other at start-up."""

SLURM = (
  *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
  *("SLURM_PROCID", "SLURM_LOCALID"),
)
"""Variables by which JAX recognises a SLURM step; srun sets all of them."""


@contextlib.contextmanager
def joined(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """Joins the other processes for the duration of the block; see `start`.

  A process that fails in the block exits without waiting for the others, which
  may be waiting for it.
  """
  start(coordinator, num_processes, process_id)
  try:
    yield
  except BaseException as error:
    if jax.distributed.is_initialized():
      atexit.register(_exit_now, 2 if isinstance(error, UserError) else 1)
    raise
  stop()


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  wait_s: float = WAIT_S,
) -> bool:
  """Joins the other processes; call it before any use of a device.

  Args:
    coordinator: "HOST:PORT" at which process 0 listens; None: detected, as are
      the next two. Give all three or none.
    num_processes: of the run, at least 1.
    process_id: of this process, from 0.
    wait_s: timeout in seconds.

  Returns:
    Whether there are other processes; if not, nothing was done.

  Raises:
    UserError: the values are incomplete or wrong, the port is taken, or the
      coordinator does not answer in time. (If other processes do not come in
      time, JAX ends process 0 with exit code 134.)
  """
  names = ("coordinator", "num_processes", "process_id")
  given = zip(names, (coordinator, num_processes, process_id), strict=True)
  args = initialize_args(dict(given), os.environ)
  if args is None:
    return False
  if address := args.get("coordinator_address"):
    if args["process_id"] == 0:
      _check_port(address, args["num_processes"], wait_s)
    else:
      _wait_for_coordinator(address, wait_s)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      **args, initialization_timeout=max(int(wait_s), 1)
    )
  except (ValueError, RuntimeError, OSError) as error:
    raise UserError(
      option("coordinator"),
      f"is not set, and the other processes were not found ({error})",
      f"set {option('coordinator')}, {option('num_processes')} and "
      f"{option('process_id')}, or, on a single-host TPU, "
      "TPU_SKIP_MDS_QUERY=1",
    ) from error
  return True


def stop() -> None:
  """Waits for the other processes to finish; harmless without `start`."""
  try:
    jax.distributed.shutdown()
  except RuntimeError as error:  # the work is done: no reason to fail
    print(f"warning: leaving the other processes: {error}", file=sys.stderr)


def initialize_args(
  given: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, Any] | None:
  """Arguments for `jax.distributed.initialize`; None: a single process.

  `given` are values of `coordinator`, `num_processes`, `process_id`, or None.
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
    # JAX gives a SLURM task one GPU; the only task of a node gets all of them.
    alone = re.fullmatch(
      r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    )
    return {"local_device_ids": []} if alone else {}
  return {} if _on_tpus(environ) else None


def _explicit(values: Mapping[str, Any]) -> dict[str, Any]:
  missing = [k for k, value in values.items() if value in (None, "")]
  if missing:
    raise UserError(
      option(missing[0]),
      f"(or LUMIERE_{missing[0].upper()}) is missing",
      f"set all of {option('coordinator', 'HOST:PORT')}, "
      f"{option('num_processes')} and {option('process_id')}, or none",
    )
  count = _integer("num_processes", values["num_processes"], 1)
  number = _integer("process_id", values["process_id"], 0)
  if number >= count:
    raise UserError(
      option("process_id", number),
      f"is too large for {option('num_processes', count)}",
      f"use 0 to {count - 1}",
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
    option(name, value),
    "is not valid",
    f"give a whole number of at least {least}",
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
  """Number of tasks of the SLURM step of this process; 0: no SLURM.

  A shell opened by salloc sees the tasks of the job, but is a step of one.
  """
  if not all(name in environ for name in SLURM):
    return 0
  return int(environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"]))


def _on_tpus(environ: Mapping[str, str]) -> bool:
  """Whether TPUs are present, enabled, and possibly on several hosts."""
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get(
    "TPU_WORKER_HOSTNAMES", ""
  )
  slices = environ.get("MEGASCALE_NUM_SLICES", "1")
  if "," in hosts or slices not in ("", "1"):
    return True
  if "TPU_PROCESS_ADDRESSES_PATH" in environ:  # read by JAX from 0.11.2
    return True
  # JAX sets this at import if the machine has no TPU chips.
  if environ.get("TPU_SKIP_MDS_QUERY") is not None:
    return False
  return importlib.util.find_spec("libtpu") is not None


def _check_port(address: str, num_processes: int, wait_s: float) -> None:
  """Tries the port of process 0: JAX would not raise, but abort the process."""
  _, port = _address(address)
  with contextlib.closing(socket.socket()) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind(("", port))
    except OSError as error:
      raise UserError(
        f"{option('coordinator', address)}:",
        f"port {port} cannot be opened ({error.strerror})",
        "use another one",
      ) from error
  if num_processes > 1:
    print(
      f"process 0 waits for {num_processes - 1} more at {address}, at most "
      f"{wait_s:g} s",
      file=sys.stderr,
    )


def _wait_for_coordinator(address: str, wait_s: float) -> None:
  """As above: JAX would abort the process."""
  end = time.monotonic() + wait_s
  while True:
    try:
      socket.create_connection(_address(address), timeout=5).close()
      return
    except OSError as error:  # names of pods resolve only after a while
      if time.monotonic() > end:
        raise UserError(
          option("coordinator", address),
          f"did not answer within {wait_s:g} s ({error.strerror or error})",
          "check that process 0 is running and can be reached there",
        ) from error
      time.sleep(min(0.5, wait_s))


def _exit_now(code: int) -> None:
  """Exits at once; JAX's exit handler would wait for the other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
