"""Speed compared with other libraries: `make bench` and `make bench-check`.

python -m benchmarks.speed --peers=.venv-bench/bin/python

Updates a JSON file after each section; with --page, also its tables in a page.
Other sections in the file are kept. With --check it measures a part of the
ratios and writes nothing: it reports those more than 10% worse than in
docs/performance.json, and then exits with 1. As ratios vary by 5 to 10% from
run to run, the better quartile of the new pairs must be that much worse than
the old median, and again when its section is repeated.
"""

import argparse
from collections.abc import Iterator
import datetime
import json
import os
from pathlib import Path
import platform
import re
import shutil
import signal
import sys
import time
from typing import Any

from benchmarks.speed import tables
from benchmarks.speed.pairing import ROOT
from benchmarks.speed.ratios import Place, compare
from benchmarks.speed.sections import SECTIONS, Bench, Row

COMMITTED = ROOT / "docs" / "performance.json"
PACKAGES = {
  "ours": ("jax", "flax"),
  "peers": (
    *("torch", "diffusers", "lumiere-pytorch", "imagen-pytorch"),
    "make-a-video-pytorch",
  ),
}


def main() -> None:
  """Measures the requested sections."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.speed",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  more = lambda name, text, **kind: parser.add_argument(
    f"--{name}", help=text, **kind
  )
  peers, out = ".venv-bench/bin/python", Path("out/bench.json")
  more("peers", "the peers' interpreter", default=peers)
  more("out", f"results, {out}", type=Path, default=out)
  more("page", "Markdown page to update with all tables", type=Path)
  more("rounds", "rounds per pair", type=int)
  more("only", "; ".join(costs()), nargs="+", choices=SECTIONS, default=[])
  more("check", "compare with the committed results", action="store_true")
  flags = parser.parse_args()
  if flags.rounds is not None and flags.rounds < 1:
    parser.error(f"--rounds={flags.rounds} must be at least 1")
  if flags.page and flags.only:
    parser.error("--page needs all sections; remove --only")
  if flags.page:
    try:
      tables.replace(flags.page.read_text(), "")
    except (OSError, ValueError) as error:
      parser.error(f"--page: {error}")
  # So that worker processes end too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  if not shutil.which(flags.peers):
    parser.error(f"no interpreter {flags.peers}; make bench sets it up")
  if flags.check and any(not SECTIONS[k].quick_seconds for k in flags.only):
    parser.error(f"--check does not cover {' or '.join(flags.only)}")
  sys.exit(check(flags) if flags.check else bench(flags))


def bench(flags: argparse.Namespace) -> None:
  """Measures, and writes the results after each section."""
  found = json.loads(flags.out.read_text()) if flags.out.exists() else {}
  here = {"machine": machine(), "versions": versions(flags)}
  if flags.only and found and any(found[k] != v for k, v in here.items()):
    sys.exit(
      f"error: {flags.out} is from another machine or other versions; measure "
      "all sections, or choose another --out"
    )
  found |= here
  sections = found.setdefault("sections", {})
  flags.out.parent.mkdir(parents=True, exist_ok=True)
  for name, rows, rounds in measured(flags, quick=False):
    today = datetime.date.today().isoformat()
    sections[name] = {"date": today, "rounds": rounds, "rows": rows}
    order = sorted(sections, key=list(SECTIONS).index)
    found["sections"] = sections = {key: sections[key] for key in order}
    flags.out.write_text(json.dumps(found, indent=1) + "\n")
  if flags.page:
    tables.write(found, flags.page)
  print(f"results: {flags.out}")


def check(flags: argparse.Namespace, committed: Path = COMMITTED) -> int:
  """Measures the quick rows and prints regressions; returns 1 if any."""
  if not committed.exists():
    sys.exit(f"error: {committed.name} is missing; run make bench first")
  old = json.loads(committed.read_text()).get("sections", {})
  found = compared(flags, old)
  if found:
    names = map(", ".join, found)
    print("seem worse, measured again:", *names, sep="\n  ", flush=True)
    flags.only = list(dict.fromkeys(section for section, *_ in found))
    again = compared(flags, old)
    found = {place: again[place] for place in found if place in again}
  lines = (f"{', '.join(place)}: {text}" for place, text in found.items())
  print("\n".join(lines) or "no ratio got more than 10% worse")
  return 1 if found else 0


def compared(flags: argparse.Namespace, old: dict) -> dict[Place, str]:
  """Results of `compare` for the quick rows, measured now."""
  found = {}
  for name, rows, _ in measured(flags, quick=True):
    found |= compare(name, rows, old.get(name, {}).get("rows", []))
  return found


def measured(
  flags: argparse.Namespace, *, quick: bool
) -> Iterator[tuple[str, list[Row], int]]:
  """Yields (name, rows, rounds) of each section when it is measured."""
  cost = lambda name: (
    SECTIONS[name].quick_seconds if quick else SECTIONS[name].seconds
  )
  names = [name for name in flags.only or SECTIONS if cost(name)]
  start = time.monotonic()
  for i, name in enumerate(names):
    rounds = flags.rounds or SECTIONS[name].rounds
    side = Bench(sys.executable, flags.peers, rounds=rounds, quick=quick)
    rows, began = [], time.monotonic()
    for row in SECTIONS[name].measure(side):
      rows.append(row)
      now = time.monotonic()
      left = max(0, cost(name) - now + began) + sum(map(cost, names[i + 1 :]))
      print(
        f"{now - start:5.0f} s, about {left:.0f} s left  {name}, {brief(row)}",
        flush=True,
      )
    yield name, rows, rounds


def brief(row: Row) -> str:
  """A row in one line."""
  ratios = row.get("ratios")
  if not ratios:
    return f"{row['name']}: {row['seconds']:.1f} s"
  medians = (f"{name} {ratio['median']:.2f}" for name, ratio in ratios.items())
  return f"{row['name']}: " + "; ".join(medians)


def costs() -> Iterator[str]:
  """Minutes per section on two cores."""
  for name, section in SECTIONS.items():
    yield f"{name}: {section.seconds / 60:.0f} minutes"


def machine() -> str:
  """Cores and processor."""
  info = Path("/proc/cpuinfo")
  text = info.read_text() if info.exists() else ""
  model = re.search(r"^model name\s*: (.*)$", text, re.M)
  name = f" of an {model[1]}" if model else ""
  return f"{os.cpu_count()} cores{name}, {platform.machine()}"


def versions(flags: argparse.Namespace) -> dict[str, Any]:
  """Installed versions of the compared packages."""
  known = {}
  side = Bench(sys.executable, flags.peers, rounds=1)
  for name, packages in PACKAGES.items():
    with side.worker(name) as worker:
      known |= worker.ask("versions", names=packages)
  return known


if __name__ == "__main__":
  main()
