"""Which ratios got worse since they were committed: `make bench-check`."""

from typing import Any

from benchmarks.speed.ratios import worse

Row = dict[str, Any]
Place = tuple[str, ...]
"""Of a ratio: section, row, name; of a row: section, row."""


def compare(section: str, rows: list[Row], old: list[Row]) -> dict[Place, str]:
  """What to say of each ratio that got worse or that there was none of before.

  Args:
    section: name of.
    rows: measured now.
    old: as committed.
  """
  before = {row["name"]: row["ratios"] for row in old if "ratios" in row}
  missing = "is missing in what is committed; run make bench"
  said = {}
  for row in rows:
    if row["name"] not in before:
      said[section, row["name"]] = missing
      continue
    for name, new in row["ratios"].items():
      place = (section, row["name"], name)
      was = before[row["name"]].get(name)
      if was is None:
        said[place] = missing
      elif worse(new, was):
        low, high = new["quartiles"]
        said[place] = (
          f"got worse, {was['median']:.2f} -> {new['median']:.2f} ({low:.2f} "
          f"to {high:.2f}); {new['better']} is better"
        )
  return said
