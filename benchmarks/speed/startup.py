"""Seconds of whole processes, for the speed benchmark."""

from collections.abc import Iterator
import os
from pathlib import Path
import subprocess
import tempfile
import time
from typing import Any

from benchmarks.speed.pairing import ROOT

# The page needs packages of its own, which this environment is without.
ENTRIES = ("main", "sample", "convert", "evaluate", "prepare", "plan")
FIRST_STEP_GOALS = {"empty": 20, "filled": 6}
IMPORT_GOAL = 2
TRAIN = (
  *("-m", "lumiere_jax.main", "--config=configs/base.py:tiny"),
  *("--config.init_from=scratch", "--config.train.steps=1", "--workdir={}"),
)
SAMPLE = (
  *("-m", "lumiere_jax.sample", "--model=demo", "--prompt=a red circle"),
  "--out={}.mp4",
)


def startup(bench: Any) -> Iterator[dict[str, Any]]:
  """One training step, one video and imports, each a process of its own.

  The first two with an empty and a filled compile cache.

  Args:
    bench: of which `ours` is the interpreter and `rounds` the runs of an
      import, of which the quickest counts.
  """
  for name, words in (("train", TRAIN), ("sample", SAMPLE)):
    with tempfile.TemporaryDirectory() as folder:
      for cache, goal in FIRST_STEP_GOALS.items():
        out = f"{folder}/{name}_{cache}"
        argv = [bench.ours, *(word.format(out) for word in words)]
        log = Path(out) / "metrics.jsonl"
        seconds, first = run(argv, log, _cached_in(folder))
        row = {"name": f"{name}, {cache} cache", "seconds": seconds}
        if name == "train":
          row |= {"first_step_seconds": first, "goal": goal}
        yield row
  importing = lambda module: min(
    run([bench.ours, "-c", f"import {module}"])[0] for _ in range(bench.rounds)
  )
  jax = importing("jax")
  for entry in ENTRIES:
    seconds = importing(f"lumiere_jax.{entry}")
    yield {
      "name": f"import of {entry}",
      "seconds": seconds,
      "besides_jax": seconds - jax,
      "goal": IMPORT_GOAL,
    }


def _cached_in(folder: str) -> dict[str, str]:
  compiled = f"{folder}/compiled"
  return {"XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": compiled}


def run(
  argv: list[str], log: Path | None = None, environment: dict | None = None
) -> tuple[float, float | None]:
  """Seconds of a process until its end, and until a file that it writes.

  Args:
    argv: the command.
    log: the file; a training run logs its first step to it.
    environment: added to the present one.

  Raises:
    RuntimeError: the process failed.
  """
  first, start = None, time.perf_counter()
  with tempfile.TemporaryFile("w+", errors="replace") as told:
    process = subprocess.Popen(
      argv,
      cwd=ROOT,
      env={**os.environ, **(environment or {})},
      stdout=told,
      stderr=told,
    )
    try:
      while process.poll() is None:
        if first is None and log and log.exists():
          first = time.perf_counter() - start
        time.sleep(0.01)
    finally:
      process.kill()
      process.wait()
    seconds = time.perf_counter() - start
    told.seek(0)
    if process.returncode:
      raise RuntimeError(f"{' '.join(argv)}:\n{told.read()[-1000:]}")
  return seconds, first
