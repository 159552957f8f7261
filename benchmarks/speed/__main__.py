"""How fast this is, beside others: `make bench`.

.venv/bin/python -m benchmarks.speed --peers=.venv-bench/bin/python

Writes one JSON file; sections not asked for are kept as they are in it.
"""

import argparse
import json
import os
from pathlib import Path
import platform
import sys
import time

from benchmarks.speed.sections import SECTIONS, Bench


def main() -> None:
  """Measures the sections asked for, and says how far it is."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--peers", required=True, help="their interpreter")
  parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--only", nargs="*", choices=SECTIONS, default=[])
  flags = parser.parse_args()
  bench = Bench(sys.executable, flags.peers, rounds=flags.rounds)
  found = json.loads(flags.out.read_text()) if flags.out.exists() else {}
  found["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
  start = time.monotonic()
  for name in flags.only or SECTIONS:
    found[name] = []
    for row in SECTIONS[name](bench):
      found[name].append(row)
      print(f"{time.monotonic() - start:5.0f} s {name}: {json.dumps(row)}")
      flags.out.parent.mkdir(parents=True, exist_ok=True)
      flags.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
