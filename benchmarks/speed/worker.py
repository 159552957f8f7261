"""Builds and runs jobs of one side on request.

python -m benchmarks.speed.worker --side=peers|ours --threads=2

Reads commands from stdin, one JSON object per line, and answers with one on
stdout, {"error": ...} on failure. Commands:

{"do": "build", "name": ..., "args": {...}}: the counts of the job, and
  "build_seconds" with the imports of a peer; replaces the current job
{"do": "run", "what": "forward" | "train", "times": n}: "seconds" of each
{"do": "output", "to": PATH.npy}
{"do": "memory"}: "peak_bytes" and "now_bytes" of resident memory
{"do": "reset_memory"}: resets the peak to the current value
{"do": "versions", "names": [...]}: of installed packages, by name
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
from pathlib import Path
import re
import sys
import time
import traceback
from typing import Any, TextIO

import numpy as np

from benchmarks.speed.job import Job

REGISTRIES = {"peers": "PEERS", "ours": "JOBS"}
COUNTS = ("forward_flops", "train_flops", "parameters", "trained")


class Server:
  """One method per command; holds the current job."""

  def __init__(self, registry: Mapping[str, Callable[..., Job]]):
    self.registry = registry
    self.job: Job | None = None

  def build(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    self.job = None
    gc.collect()
    start = time.perf_counter()
    self.job = self.registry[name](**args)
    seconds = time.perf_counter() - start
    counts = {key: getattr(self.job, key) for key in COUNTS}
    return counts | {"build_seconds": seconds}

  def run(self, what: str, times: int) -> dict[str, Any]:
    run = {"forward": self.job.forward, "train": self.job.train}[what]
    seconds = []
    for _ in range(times):
      start = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - start)
    return {"seconds": seconds}

  def output(self, to: str) -> dict[str, Any]:
    np.save(to, self.job.output())
    return {}

  def memory(self) -> dict[str, Any]:
    status = Path("/proc/self/status").read_text()
    kib = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB$", status, re.M))
    return {
      "peak_bytes": int(kib["VmHWM"]) * 1024,
      "now_bytes": int(kib["VmRSS"]) * 1024,
    }

  def reset_memory(self) -> dict[str, Any]:
    # glibc keeps freed memory, for example of the build.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return {}

  def versions(self, names: Sequence[str]) -> dict[str, Any]:
    return {name: importlib.metadata.version(name) for name in names}


def serve(server: Server, commands: TextIO, answers: TextIO) -> None:
  """Answers commands until the end of input."""
  for line in commands:
    try:
      command = json.loads(line)
      answer = getattr(server, command.pop("do"))(**command)
    except Exception as error:
      traceback.print_exc()
      last = traceback.format_exception_only(error)[-1].strip()
      answer = {"error": last.splitlines()[-1]}
    print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
  """Sets up the process before the libraries of its side are imported."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--side", choices=list(REGISTRIES), required=True)
  parser.add_argument("--threads", type=int, required=True)
  flags = parser.parse_args()
  # Output of libraries goes to stderr.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  # Makes torch's threads sleep between runs. By default they first spin, which
  # takes time from the other worker.
  os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
  # XLA uses one thread per available core and has no flag for it.
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, cores[: flags.threads])
  side = importlib.import_module(f"benchmarks.speed.{flags.side}")
  if flags.side == "peers":
    importlib.import_module("torch").set_num_threads(flags.threads)
  serve(Server(getattr(side, REGISTRIES[flags.side])), sys.stdin, answers)


if __name__ == "__main__":
  main()
