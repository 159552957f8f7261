"""Held-out loss against clips of Adam, Muon and the schedule-free optimizer.

python -m benchmarks.optimizers --out=out/optimizers [--clips=20000]

Trains the shipped base from scratch on the same procedural clips, one optimizer
after another, and writes optimizers.json and optimizers.svg. A run that was
stopped resumes. Learning rates are those of the shipped model's first trials
(docs/model_card.md) and, without trials, twice Adam's for schedule_free.
"""

from collections.abc import Mapping
import html
import math
from pathlib import Path

from absl import flags
import jax

from benchmarks.markdown import table
from configs import common, shipped
from lumiere_jax import cli
from lumiere_jax.storage.atomic import write_json
from lumiere_jax.storage.bundle import SHIPPED
from lumiere_jax.training.compatibility import SCRATCH
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train
from lumiere_jax.training.run_report import RunSummary

RUNS = {
  "adam": {"learning_rate": 1.5e-3},
  "muon": {"learning_rate": 2e-3, "muon_rms": 0.5},
  "schedule_free": {"learning_rate": 3e-3, "decay": "constant"},
}
COLOURS = {"adam": "#26c", "muon": "#c40", "schedule_free": "#283"}
EVALUATIONS = 10
WIDTH, HEIGHT, LEFT, BELOW = 520, 300, 44, 28

Curve = list[tuple[int, float]]
"""(clips, held-out loss)."""


def experiment(
  name: str, clips: int, batch_size: int, frames: int
) -> Experiment:
  """The shipped base, to be trained on so many clips with an optimizer."""
  steps = max(clips // batch_size, 1)
  return common.replace(
    shipped.BASE,
    init_from=SCRATCH,
    text={"weights": SHIPPED, "train": False},
    data={"num_frames": frames},
    train={
      "optimizer": name,
      "steps": steps,
      "batch_size": batch_size,
      "warmup_steps": max(steps // 20, 1),
      "eval_every": max(steps // EVALUATIONS, 1),
      "eval_clips": 16,
      **RUNS[name],
    },
  )


def chart(curves: Mapping[str, Curve]) -> str:
  """An SVG chart of all curves; the loss on a log scale."""
  points = [point for curve in curves.values() for point in curve]
  last = max(clips for clips, _ in points) or 1
  low, high = (f(loss for _, loss in points) for f in (min, max))
  span = math.log(high / low) or 1.0
  base = HEIGHT - BELOW
  x = lambda clips: LEFT + clips / last * (WIDTH - LEFT - 10)
  y = lambda loss: 20 + math.log(high / loss) / span * (base - 20)
  parts = [
    f'<path d="M{LEFT} 20V{base}H{WIDTH - 10}" fill="none" stroke="#999"/>',
    f'<text x="4" y="24">{high:.3g}</text><text x="4" y="{base}">{low:.3g}'
    f'</text><text x="{WIDTH - 110}" y="{HEIGHT - 8}">{last:,} clips</text>',
  ]
  for k, (name, curve) in enumerate(curves.items()):
    line = " ".join(f"{x(clips):.1f},{y(loss):.1f}" for clips, loss in curve)
    colour = COLOURS[name]
    parts += [
      f'<polyline points="{line}" fill="none" stroke="{colour}"/>',
      f'<text x="{LEFT + 12 + 110 * k}" y="12" fill="{colour}">'
      f"{html.escape(name)}</text>",
    ]
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
    f'height="{HEIGHT}" style="background: #fff" font-family="sans-serif" '
    f'font-size="11" fill="#555">{"".join(parts)}</svg>\n'
  )


def compare(out: Path, clips: int, batch_size: int, frames: int) -> None:
  """Trains with each optimizer, writes the files and prints the table."""
  curves: dict[str, Curve] = {}
  about = {"device": jax.devices()[0].device_kind, "batch_size": batch_size}
  for name in RUNS:
    train(experiment(name, clips, batch_size, frames), out / name)
    run = RunSummary.read(out / name, name=name)
    curves[name] = [(step * batch_size, loss) for step, loss in run.held_out]
    about["parameters"] = run.parameters
    write_json(
      out / "optimizers.json",
      {**about, "frames": frames, "runs": RUNS, "held_out": curves},
    )
    (out / "optimizers.svg").write_text(chart(curves))
  losses = {name: dict(curve) for name, curve in curves.items()}
  seen = sorted({clips for curve in losses.values() for clips in curve})
  cell = lambda name, clips: losses[name].get(clips)
  rows = [
    (f"{n:,}", *(f"{v:.4f}" if (v := cell(k, n)) else None for k in losses))
    for n in seen
  ]
  print(table(("clips", *losses), rows))


if __name__ == "__main__":
  OUT = flags.DEFINE_string("out", "out/optimizers", "Output folder.")
  CLIPS = flags.DEFINE_integer("clips", 20_000, "Clips for each.", 1)
  BATCH = flags.DEFINE_integer("batch_size", 16, "Clips of a step.", 1)
  FRAMES = flags.DEFINE_integer("frames", 16, "Frames of a clip.", 8)
  cli.run(
    lambda argv: compare(
      Path(OUT.value), CLIPS.value, BATCH.value, FRAMES.value
    )
  )
