"""Durations of whole processes, for the speed benchmark."""

from collections.abc import Iterator
import os
from pathlib import Path
import subprocess
import tempfile
import time
from typing import Any

from benchmarks.speed.pairing import ROOT

# Without app, whose packages this environment does not have.
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
  """One training step, one video and imports, each in its own process.

  The first two with an empty and a filled compilation cache.

  Args:
    bench: `ours` is the interpreter, `rounds` the number of runs of an import,
      of which the fastest counts.
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
  """Seconds until a process ends, and until it writes a file.

  Args:
    argv: the command.
    log: the file; a training run logs its first step to it.
    environment: additional variables.

  Raises:
    RuntimeError: the process failed.
  """
  first, start = None, time.perf_counter()
  with tempfile.TemporaryFile("w+", errors="replace") as output:
    process = subprocess.Popen(
      argv,
      cwd=ROOT,
      env={**os.environ, **(environment or {})},
      stdout=output,
      stderr=output,
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
    output.seek(0)
    if process.returncode:
      raise RuntimeError(f"{' '.join(argv)}:\n{output.read()[-1000:]}")
  return seconds, first
