"""Which ratios got worse since they were committed: `make bench-check`."""

from collections.abc import Iterator
from typing import Any

from benchmarks.speed.ratios import worse

Row = dict[str, Any]


def compare(section: str, rows: list[Row], old: list[Row]) -> Iterator[str]:
  """A line for each ratio that got worse or that there was none of before.

  Args:
    section: name of.
    rows: measured now.
    old: as committed.
  """
  before = {row["name"]: row["ratios"] for row in old if "ratios" in row}
  for row in rows:
    where = f"{section}, {row['name']}"
    if row["name"] not in before:
      yield f"{where}: row is missing in what is committed; run make bench"
      continue
    for name, new in row["ratios"].items():
      was = before[row["name"]].get(name)
      if was is None:
        yield f"{where}: {name} is missing in what is committed; run make bench"
      elif worse(new, was):
        low, high = new["quartiles"]
        yield (
          f"{where}: {name} got worse, {was['median']:.2f} -> "
          f"{new['median']:.2f} ({low:.2f} to {high:.2f}); {new['better']} is "
          "better"
        )
