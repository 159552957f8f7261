"""Trains in several processes on one machine, which simulates several hosts.

python launch/local.py --processes=2 -- --config=configs/base.py:tiny ...

Arguments after `--` go to `python -m lumiere_jax.main`. The processes connect
over loopback and run on the CPU unless JAX_PLATFORMS is set. Output lines of
process K are prefixed with `[K]`, except those of process 0. SIGTERM and Ctrl-C
go to all. If one fails, the others are killed after a grace period, as they may
be waiting for it, and its exit code is returned.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import BinaryIO

from absl import app, flags

PROCESSES = flags.DEFINE_integer(
  "processes", 2, "Processes to start.", lower_bound=1
)
DEVICES = flags.DEFINE_integer(
  "devices", 1, "Devices of each process.", lower_bound=1
)

GRACE_S = 10.0
"""Seconds that the others have to exit after one failed."""
POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
  """Runs the trainer in all processes."""
  command = [sys.executable, "-m", "lumiere_jax.main", *argv[1:]]
  return run(command, PROCESSES.value, DEVICES.value)


def run(
  command: Sequence[str],
  processes: int,
  devices: int = 1,
  *,
  grace_s: float = GRACE_S,
) -> int:
  """Runs `command` in several processes of one distributed JAX run.

  No process outlives this call, nor (on Linux) this process.

  Returns:
    Exit code of the first failed process (128 + N for signal N), else 0.
  """
  children = []
  with caught_signals() as signals:
    try:
      port, pumps = free_port(), []
      for k in range(processes):
        environ = environment(k, processes, devices, port)
        children.append(start(command, environ))
      for k, child in enumerate(children[1:], 1):
        pumps += forward_output(child, k)
      code = wait(children, signals, grace_s)
    finally:
      for child in children:
        kill(child)
    for pump in pumps:
      pump.join(timeout=5)
  return code


def environment(
  k: int, processes: int, devices: int, port: int
) -> Mapping[str, str]:
  """The environment of process `k`."""
  address = f"127.0.0.1:{port}"
  own = range(k * devices, (k + 1) * devices)
  return {
    "JAX_PLATFORMS": "cpu",
    **os.environ,
    "JAX_NUM_CPU_DEVICES": str(devices),
    # On GPUs each process uses its own devices.
    "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, own)),
    "JAX_COORDINATOR_BIND_ADDRESS": address,
    "LUMIERE_COORDINATOR": address,
    "LUMIERE_NUM_PROCESSES": str(processes),
    "LUMIERE_PROCESS_ID": str(k),
    "PYTHONUNBUFFERED": "1",
  }


def start(
  command: Sequence[str], environ: Mapping[str, str]
) -> subprocess.Popen:
  """Starts a process in its own group, so that it gets Ctrl-C only from us."""
  piped = None if environ["LUMIERE_PROCESS_ID"] == "0" else subprocess.PIPE
  return subprocess.Popen(
    command,
    env=environ,
    stdin=subprocess.DEVNULL,
    stdout=piped,
    stderr=piped,
    process_group=0,
    preexec_fn=_dies_with_parent(),
  )


def forward_output(child: subprocess.Popen, k: int) -> list[threading.Thread]:
  """Forwards the output of process `k`, each line prefixed with `[k]`."""
  streams = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
  threads = []
  for source, target in streams:
    args = (source, target.buffer, b"[%d] " % k)
    threads.append(threading.Thread(target=_pump, args=args, daemon=True))
    threads[-1].start()
  return threads


def _pump(source: BinaryIO, target: BinaryIO, prefix: bytes) -> None:
  for line in source:  # reads even if writing fails: a full pipe would block
    with contextlib.suppress(OSError, ValueError):
      # Of a progress bar only the last state.
      last = line.rstrip(b"\r\n").rpartition(b"\r")[2]
      target.write(prefix + last + b"\n")
      target.flush()


def wait(
  children: Sequence[subprocess.Popen], signals: list[int], grace_s: float
) -> int:
  """Waits for all processes, at most `grace_s` after the first failure.

  Forwards `signals`, which are removed from the list. Returns as `run` does.
  """
  code, deadline = 0, float("inf")
  running = True
  while running and time.monotonic() <= deadline:
    while signals:
      number = signals.pop(0)
      for child in children:
        child.send_signal(number)
    codes = [child.poll() for child in children]
    running, failed = None in codes, [number for number in codes if number]
    if failed and not code:
      code, deadline = failed[0], time.monotonic() + grace_s
    time.sleep(POLL_S if running else 0)
  return 128 - code if code < 0 else code


def kill(child: subprocess.Popen) -> None:
  """Kills a process and all its descendants, if they still run."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child.pid, signal.SIGKILL)
  child.wait()


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT in a list instead of handling them."""
  caught = []
  catch = lambda number, frame: caught.append(number)
  numbers = (signal.SIGTERM, signal.SIGINT)
  old = {number: signal.signal(number, catch) for number in numbers}
  try:
    yield caught
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def free_port() -> int:
  """An unused loopback port."""
  with contextlib.closing(socket.socket()) as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def _dies_with_parent() -> Callable[[], None] | None:
  """For `preexec_fn`: the kernel kills the child when its parent dies."""
  if not sys.platform.startswith("linux"):
    return None
  prctl = ctypes.CDLL(None).prctl  # loaded before the fork
  parent = os.getpid()

  def set_signal() -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died meanwhile
      os._exit(1)

  return set_signal


if __name__ == "__main__":
  # A script has its own folder, not the root, on the import path.
  root = str(Path(__file__).resolve().parents[1])
  os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [root, os.environ.get("PYTHONPATH")])
  )
  app.run(main)
