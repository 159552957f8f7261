"""What `make demo` does: every task once, every stage a few steps.

Each is a command that can be run by hand; the page shows them.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import time

from tqdm import tqdm

from launch.showcase import SHOWS, Show, draw_inputs, run
from lumiere_jax.stages.config import PARENTS
from lumiere_jax.training.run_report import RunSummary, Sample, write_page

STAGES = tuple(PARENTS)


# Enough to see what it is; the gallery has the defaults.
FEW = ("--steps=6", "--ssr_steps=2")


def take_tour(out: Path, model: str) -> None:
  """Makes everything in `out`, index.html last.

  Args:
    out: folder; what a tour before left there is replaced.
    model: bundle to sample from.
  """
  # Programs of one shape are compiled once for all processes.
  cache = {"JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve())}
  inputs = out / "inputs"
  draw_inputs(inputs)
  samples = [
    Sample(
      file=f"{show.name}{show.ending}",
      title=show.name.replace("_", " "),
      caption=f"{show.says} {show.prompt}".strip(),
      command=run(
        show.command(model, inputs, out, *FEW, "--overwrite"), **cache
      ),
    )
    for show in map(shortened, SHOWS)
  ]
  # Two at a time: most of it is compilation, by one core each.
  with ThreadPoolExecutor(2) as pool:
    trained = pool.map(lambda stage: train(out, stage, cache), STAGES)
    runs = [*tqdm(trained, "training", len(STAGES), unit="stage")]
  write_page(out, "lumiere_jax demo", samples, runs)
  print(f"\nopen {out / 'index.html'}")


def shortened(show: Show) -> Show:
  """What the gallery takes longer over."""
  return replace(show, arguments=show.short or show.arguments)


def train(out: Path, stage: str, cache: Mapping[str, str]) -> RunSummary:
  """Trains one stage in a process of its own, anew."""
  workdir = out / "training" / stage
  began = time.monotonic()
  line = run(
    [
      "lumiere_jax.main",
      f"--config=configs/demo.py:{stage}",
      f"--workdir={workdir}",
      "--noconfig.resume",
    ],
    log=out / f"{stage}.log",
    **cache,
  )
  seconds = time.monotonic() - began
  return RunSummary.read(workdir, name=stage, command=line, seconds=seconds)
