"""Samples every task, trains each stage a few steps, writes a page.

python -m launch.demo [--out=out/demo] [--model=demo]

The page shows the command of each, which can be run by hand.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import time

from absl import flags
from tqdm import tqdm

from launch.showcase import SHOWS, draw_inputs, run
from lumiere_jax import cli
from lumiere_jax.errors import UserError
from lumiere_jax.stages.config import PARENTS
from lumiere_jax.storage.atomic import check_writable, writing
from lumiere_jax.training.run_report import RunSummary, Sample, write_page

_MARK = ".lumiere_jax_demo"
# Few sampling steps, to save time; the gallery uses the defaults.
FEW = ("--steps=6", "--ssr_steps=2")


def take_tour(out: Path, model: str) -> None:
  """Runs all commands and writes index.html; replaces earlier results.

  The folder is new, empty, or marked as one of these.
  """
  check_writable(out, folder=True)
  mark = out / _MARK
  if out.exists() and not mark.exists() and any(out.iterdir()):
    raise UserError(
      f"{out}:", "holds files of other programs", "choose a new folder"
    )
  with writing(mark):
    pass
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
    trained = pool.map(lambda stage: train(out, stage, cache), PARENTS)
    runs = [*tqdm(trained, "training", len(PARENTS), unit="stage")]
  write_page(out, "lumiere_jax demo", samples, runs)
  print(f"\nopen {out / 'index.html'}")


def train(out: Path, stage: str, cache: Mapping[str, str]) -> RunSummary:
  """Trains one stage from its start, in its own process."""
  workdir, began = out / "training" / stage, time.monotonic()
  flags = (f"--config=configs/demo.py:{stage}", f"--workdir={workdir}")
  command = ["lumiere_jax.main", *flags, "--noconfig.resume"]
  line = run(command, log=out / f"{stage}.log", **cache)
  seconds = time.monotonic() - began
  return RunSummary.read(workdir, name=stage, command=line, seconds=seconds)


if __name__ == "__main__":
  OUT = flags.DEFINE_string("out", "out/demo", "Output folder.")
  MODEL = flags.DEFINE_string("model", "demo", "Bundle to sample from.")
  cli.run(lambda argv: take_tour(Path(OUT.value), MODEL.value))
