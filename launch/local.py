"""Trains in several processes on this machine, as several hosts would.

python launch/local.py --processes=2 -- --config=configs/base.py:tiny ...

What follows `--` goes to `python -m lumiere_jax.main`. The processes find each
other over loopback and run on the CPU, unless JAX_PLATFORMS says otherwise.
Lines of process K are marked `[K]`, those of process 0 are left as they are.
SIGTERM and Ctrl-C go to all. Where one fails, the others, which may wait for
it, are ended soon after, and its exit code is the answer.
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
"""Seconds the others have to end by themselves when one failed."""
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
  """Runs `command` in several processes that are one run of JAX.

  None of them outlives this call, nor (on Linux) this process.

  Returns:
    Exit code of the first that failed (128 + N for signal N), else 0.
  """
  children = []
  with caught_signals() as asked:
    try:
      port = free_port()
      for k in range(processes):
        children.append(
          begin(command, environment(k, processes, devices, port))
        )
      pumps = [
        pump for k, child in enumerate(children) if k for pump in mark(child, k)
      ]
      code = watch(children, asked, grace_s)
    finally:
      for child in children:
        end(child)
    for pump in pumps:
      pump.join(timeout=5)
  return code


def environment(
  k: int, processes: int, devices: int, port: int
) -> Mapping[str, str]:
  """The environment of process `k`."""
  address = f"127.0.0.1:{port}"
  return {
    "JAX_PLATFORMS": "cpu",
    **os.environ,
    "JAX_NUM_CPU_DEVICES": str(devices),
    # Where they are GPUs, each process takes its own.
    "JAX_LOCAL_DEVICE_IDS": ",".join(
      str(k * devices + i) for i in range(devices)
    ),
    "JAX_COORDINATOR_BIND_ADDRESS": address,
    "LUMIERE_COORDINATOR": address,
    "LUMIERE_NUM_PROCESSES": str(processes),
    "LUMIERE_PROCESS_ID": str(k),
    "PYTHONUNBUFFERED": "1",
  }


def begin(
  command: Sequence[str], environ: Mapping[str, str]
) -> subprocess.Popen:
  """Starts one process, in a group of its own: Ctrl-C comes from us alone."""
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


def mark(child: subprocess.Popen, k: int) -> list[threading.Thread]:
  """Passes on what process `k` writes, every line with `[k]` before it."""
  streams = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
  threads = [
    threading.Thread(
      target=_pump, args=(source, target.buffer, b"[%d] " % k), daemon=True
    )
    for source, target in streams
  ]
  for thread in threads:
    thread.start()
  return threads


def _pump(source: BinaryIO, target: BinaryIO, prefix: bytes) -> None:
  for line in source:  # goes on reading even if nobody listens: else it blocks
    with contextlib.suppress(OSError, ValueError):
      # Of a progress bar what was written last.
      last = line.rstrip(b"\r\n").rpartition(b"\r")[2]
      target.write(prefix + last + b"\n")
      target.flush()


def watch(
  children: Sequence[subprocess.Popen], asked: list[int], grace_s: float
) -> int:
  """Waits for all; after the first failure only so long. Its exit code.

  Args:
    children: the processes.
    asked: signals to pass on to them, taken from the list.
    grace_s: how long the others have after the first failure.
  """
  code, deadline = 0, float("inf")
  while [child for child in children if child.poll() is None]:
    while asked:
      number = asked.pop(0)
      for child in children:
        child.send_signal(number)
    failed = [c.returncode for c in children if c.returncode]
    if failed and not code:
      code, deadline = failed[0], time.monotonic() + grace_s
    if time.monotonic() > deadline:
      break
    time.sleep(POLL_S)
  failed = [c.returncode for c in children if c.returncode]
  code = code or next(iter(failed), 0)
  return 128 - code if code < 0 else code


def end(child: subprocess.Popen) -> None:
  """Ends a process and all it started; nothing where they ended already."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child.pid, signal.SIGKILL)
  child.wait()


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
  """The SIGTERMs and SIGINTs that come, which do nothing else."""
  asked = []
  catch = lambda number, frame: asked.append(number)
  numbers = (signal.SIGTERM, signal.SIGINT)
  old = {number: signal.signal(number, catch) for number in numbers}
  try:
    yield asked
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def free_port() -> int:
  """A port of loopback that nobody listens at."""
  with contextlib.closing(socket.socket()) as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def _dies_with_parent() -> Callable[[], None] | None:
  """For `preexec_fn`: the kernel kills the child should we be killed."""
  if not sys.platform.startswith("linux"):
    return None
  prctl = ctypes.CDLL(None).prctl  # loaded here: after the fork is too late
  parent = os.getpid()

  def set_signal() -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
      os._exit(1)

  return set_signal


if __name__ == "__main__":
  # As a script, the folder of this file is where imports are looked for.
  root = str(Path(__file__).resolve().parents[1])
  os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [root, os.environ.get("PYTHONPATH")])
  )
  app.run(main)
