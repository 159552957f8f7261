"""What `make demo` does: every task once, every stage a few steps.

Each is a command that can be run by hand; the page shows them.
"""

import os
from pathlib import Path
import shlex
import subprocess
import sys
import time

from launch.showcase import SHOWS, draw_inputs
from lumiere_jax.training.report import Made, RunSummary, write_page

STAGES = ("t2i", "base", "conditional", "ssr_image", "ssr")
# Enough to see what it is; the gallery has the defaults.
FEW = ("--steps=10", "--ssr_steps=4")


def take_tour(out: Path, model: str) -> None:
  """Makes everything in `out`, index.html last.

  Args:
    out: folder; what a tour before left there is replaced.
    model: bundle to sample from.
  """
  inputs = out / "inputs"
  draw_inputs(inputs)
  made = []
  for show in SHOWS:
    run(out, show.command(model, inputs, out, *FEW, "--overwrite"))
    made.append(
      Made(
        file=f"{show.name}{show.ending}",
        title=show.name.replace("_", " "),
        says=f"{show.says} {show.prompt}".strip(),
        command=show.line(model, inputs, out, *FEW),
      )
    )
  runs = [train(out, stage) for stage in STAGES]
  write_page(out, "lumiere_jax demo", made, runs)
  print(f"\nopen {out / 'index.html'}")


def train(out: Path, stage: str) -> RunSummary:
  """Trains one stage in a process of its own, anew."""
  workdir = out / "training" / stage
  command = [
    "lumiere_jax.main",
    f"--config=configs/demo.py:{stage}",
    f"--workdir={workdir}",
    "--noconfig.resume",
  ]
  line, seconds = run(out, command)
  return RunSummary.read(workdir, name=stage, command=line, seconds=seconds)


def run(out: Path, command: list[str]) -> tuple[str, float]:
  """Runs `python -m command`; returns the line and its seconds."""
  line = shlex.join(["python", "-m", *command])
  print(f"\n$ {line}", flush=True)
  start = time.monotonic()
  # Programs of one shape are compiled once for all processes.
  cache = {"JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve())}
  result = subprocess.run(
    [sys.executable, "-m", *command], env=os.environ | cache, check=False
  )
  if result.returncode:
    sys.exit(result.returncode)
  return line, time.monotonic() - start
