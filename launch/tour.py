"""`make demo`: samples every task once, trains every stage a few steps.

The page shows the command of each, which can be run by hand.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import time

from tqdm import tqdm

from launch.showcase import SHOWS, draw_inputs, run
from lumiere_jax.stages.config import PARENTS
from lumiere_jax.training.run_report import RunSummary, Sample, write_page

STAGES = tuple(PARENTS)
# Few sampling steps, to save time; the gallery uses the defaults.
FEW = ("--steps=6", "--ssr_steps=2")


def take_tour(out: Path, model: str) -> None:
  """Runs everything and writes index.html.

  Args:
    out: folder; results of an earlier run are replaced.
    model: bundle to sample from.
  """
  # Shared by all processes, so that each program is compiled once.
  cache = {"JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve())}
  inputs = out / "inputs"
  draw_inputs(inputs)
  samples = [
    Sample(
      file=f"{show.name}{show.ending}",
      title=show.name.replace("_", " "),
      caption=f"{show.about} {show.prompt}".strip(),
      command=run(
        show.command(model, inputs, out, *FEW, "--overwrite"), **cache
      ),
    )
    for show in SHOWS
    for show in [replace(show, arguments=show.short or show.arguments)]
  ]
  # Two at a time: most of the time is single-threaded compilation.
  with ThreadPoolExecutor(2) as pool:
    trained = pool.map(lambda stage: train(out, stage, cache), STAGES)
    runs = [*tqdm(trained, "training", len(STAGES), unit="stage")]
  write_page(out, "lumiere_jax demo", samples, runs)
  print(f"\nopen {out / 'index.html'}")


def train(out: Path, stage: str, cache: Mapping[str, str]) -> RunSummary:
  """Trains one stage from its start, in its own process."""
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
