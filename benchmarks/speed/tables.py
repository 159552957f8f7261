"""The results of the speed benchmark as Markdown.

python -m benchmarks.speed.tables docs/performance.json docs/performance.md

updates a page between two comments; `make bench` does the same.
"""

import json
from pathlib import Path
import sys
from typing import Any

from benchmarks.markdown import table
from benchmarks.speed.ratios import Ratio, reached

NOT_MEASURED = (("GPU", "not measured"), ("TPU", "not measured"))
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
MIB = 2**20
Row = dict[str, Any]


def replace(page: str, tables: str) -> str:
  """A page with new tables between its two comments.

  Raises:
    ValueError: the page does not have each comment once and in order.
  """
  before, begin, rest = page.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not (begin and end) or BEGIN in rest or END in before + after:
    raise ValueError(f"the page needs one {BEGIN} and below it one {END}")
  return f"{before}{BEGIN}\n{tables.strip()}\n{END}{after}"


def render(found: dict[str, Any]) -> str:
  """All tables of the measured sections."""
  versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
  parts = [
    f"Measured by `make bench` on {found['machine']}; {versions}. Seconds, "
    "GFLOP/s and ratios are medians. Both sides of a ratio alternate, and it "
    "is taken pair by pair; quartiles in brackets. FLOPs are those of matrix "
    "products and convolutions; memory is the peak of the process."
  ]
  for name, section in found["sections"].items():
    title, note, tables = SECTIONS[name]
    date, rounds = section["date"], section["rounds"]
    parts += [
      f"### {title}",
      f"{note} {date}, rounds: {rounds}.",
      *tables(section["rows"]),
    ]
  parts += ["### GPU and TPU", table(("device", "result"), NOT_MEASURED)]
  return "\n\n".join(parts)


def verdict(value: float, goal: float | None, better: str = "lower") -> str:
  """A goal, and whether the value reaches it."""
  if goal is None:
    return ""
  sign = "<=" if better == "lower" else ">="
  known = "reached" if reached(value, goal, better) else "not reached"
  return f"{sign} {goal:g}: {known}"


def cells(ratio: Ratio) -> tuple[str, str]:
  """A ratio with its quartiles, and its goal."""
  low, high = ratio["quartiles"]
  spread = "" if low == high else f" ({low:.2f} to {high:.2f})"
  goal = verdict(ratio["median"], ratio["goal"], ratio["better"])
  return f"{ratio['median']:.2f}{spread}", goal


def _mib(peak: float) -> str:
  return f"{peak / MIB:,.0f}"


def _same_weights(rows: list[Row]) -> list[str]:
  lines = []
  for row in rows:
    for what in ("forward", "train"):
      ours, theirs = row[what]["seconds"]
      peaks = map(_mib, row[what]["peak_bytes"])
      ratios = (row["ratios"][key] for key in (what, f"{what}, memory"))
      seconds, memory = map(cells, ratios)
      times = (f"{ours:.2f}", f"{theirs:.2f}")
      lines.append((row["name"], what, *times, *seconds, *peaks, *memory))
  head = ("ours s", "diffusers s", "ratio", "goal")
  memory = ("ours MiB", "diffusers MiB", "ratio", "goal")
  count = lambda row: f"{row['parameters'] / 1e6:.1f} M parameters"
  words = [f"{r['name']}: {count(r)}, {r['difference']:.1e}" for r in rows]
  return [
    table(("network, input", "pass", *head, *memory), lines),
    "Largest difference of the outputs, over their standard deviation: "
    + "; ".join(words)
    + ".",
  ]


def _same_job(rows: list[Row]) -> list[str]:
  speed, size = [], []
  sides = ("ours", "theirs")
  for row in rows:
    for what in ("forward", "train"):
      flops = [row[side][f"{what}_flops"] / 1e9 for side in sides]
      pairs = zip(flops, row[what]["seconds"], strict=True)
      rates = [f"{count / seconds:.0f}" for count, seconds in pairs]
      ratio = cells(row["ratios"][f"{what}, GFLOP/s"])
      peaks = map(_mib, row[what]["peak_bytes"])
      speed.append((row["name"], what, *rates, *ratio, *peaks))
    counts = [
      f"{row[s]['parameters'] / 1e6:.1f} ({row[s]['trained'] / 1e6:.1f})"
      for s in sides
    ]
    theirs = row["train"]["seconds"][1] / row["forward"]["seconds"][1]
    theirs *= row["theirs"]["forward_flops"] / row["theirs"]["train_flops"]
    ours = cells(row["ratios"]["train / forward, by FLOPs"])
    size.append((row["name"], *ours, f"{theirs:.2f}", *counts))
  memory = ("ours MiB", "theirs MiB")
  parameters = ("our parameters", "their parameters")
  head = ("peer", "pass", "ours GFLOP/s", "theirs", "ours / theirs", "goal")
  return [
    table((*head, *memory), speed),
    "Seconds of a training step over those of a pass, divided by the ratio of "
    "their FLOPs (theirs: of medians), and parameters in millions, trained "
    "ones in brackets:",
    table(("peer", "ours", "goal", "theirs", *parameters), size),
  ]


def _growth(rows: list[Row]) -> list[str]:
  lines = [
    (
      row["name"],
      f"{row['seconds'][0]:.2f}",
      f"{row['seconds'][1]:.2f}",
      *cells(row["ratios"]["seconds"]),
      f"{row['work']:g}",
      f"{row['flops']:.2f}",
      f"{row['ratios']['seconds']['median'] / row['work']:.2f}",
    )
    for row in rows
  ]
  head = ("input", "s", "base s", "ratio", "goal")
  more = ("times the input", "times the FLOPs", "ratio / times the input")
  return [table((*head, *more), lines)]


def _limits(rows: list[Row]) -> list[str]:
  key = "share of the U-Net"
  lines, shares = [], []
  for row in rows:
    rates = [f"{rate:.0f}" for rate in (*row["gflops"], *row["best_gflops"])]
    unet = ("", "", "")
    if key in row["ratios"]:
      unet = (f"{row['unet_gflops']:.0f}", *cells(row["ratios"][key]))
      shares.append(row)
    ours = cells(row["ratios"]["ours / torch"])[0]
    lines.append((row["name"], *rates, ours, *unet))
  rates = ("ours GFLOP/s", "torch", "ours at best", "torch at best")
  more = ("ours / torch", "U-Net GFLOP/s", "U-Net / ours", "goal")
  tables = [table(("alone", *rates, *more), lines)]
  if shares:
    *single, whole = shares
    best = max(single, key=lambda row: row["gflops"][0])
    share = lambda row: ", ".join(cells(row["ratios"][key]))
    tables.append(
      f"The U-Net's pass reaches this share of the best single convolution "
      f"({best['name']}): {share(best)}; and of all its 3x3 convolutions "
      f"alone, weighted by FLOPs: {share(whole)}."
    )
  return tables


def _startup(rows: list[Row]) -> list[str]:
  whole, imports = [], []
  for row in rows:
    value = row.get("first_step_seconds", row.get("besides_jax"))
    known = ("", "")
    if value is not None:
      known = (f"{value:.1f}", verdict(value, row.get("goal")))
    lines = imports if "besides_jax" in row else whole
    lines.append((row["name"], f"{row['seconds']:.1f}", *known))
  return [
    table(("process", "s", "until the first step", "goal"), whole),
    table(("import", "s", "besides jax", "goal"), imports),
  ]


SECTIONS = {
  "same_weights": (
    "Same weights, same answer",
    "Our image U-Net against diffusers' UNet2DConditionModel, 32x32.",
    _same_weights,
  ),
  "same_job": (
    "Same job",
    "Our Space-Time U-Net, whose temporal layers are trained, against the "
    "video U-Nets of other libraries; 16 frames of 32x32.",
    _same_job,
  ),
  "growth": (
    "Growth",
    "A denoising evaluation of the Space-Time U-Net against one of 16 frames "
    "of 32x32 (base); windows of 16 frames by MultiDiffusion, in sequence.",
    _growth,
  ),
  "limits": (
    "Limits",
    "Matrix products and 3x3 convolutions of 16 images alone, float32, and the "
    "pass of the medium U-Net, alternating with ours.",
    _limits,
  ),
  "startup": (
    "Start-up",
    "Whole processes: one step of `base:tiny`; a video of `--model=demo`; "
    "imports, the fastest of each.",
    _startup,
  ),
}


def write(found: dict[str, Any], page: Path) -> None:
  """Updates the tables of a page."""
  page.write_text(replace(page.read_text(), render(found)))


if __name__ == "__main__":
  write(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
