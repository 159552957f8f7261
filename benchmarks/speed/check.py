"""Finds ratios that got worse than the committed ones: `make bench-check`."""

from typing import Any

from benchmarks.speed.ratios import worse

Row = dict[str, Any]
Place = tuple[str, ...]
"""(section, row, name) of a ratio, or (section, row)."""


def compare(section: str, rows: list[Row], old: list[Row]) -> dict[Place, str]:
  """Describes each ratio that got worse or was not committed.

  Args:
    section: name of the section.
    rows: measured now.
    old: committed rows.
  """
  before = {row["name"]: row["ratios"] for row in old if "ratios" in row}
  missing = "is not in the committed results; run make bench"
  found = {}
  for row in rows:
    if row["name"] not in before:
      found[section, row["name"]] = missing
      continue
    for name, new in row["ratios"].items():
      place = (section, row["name"], name)
      was = before[row["name"]].get(name)
      if was is None:
        found[place] = missing
      elif worse(new, was):
        low, high = new["quartiles"]
        found[place] = (
          f"got worse, {was['median']:.2f} -> {new['median']:.2f} ({low:.2f} "
          f"to {high:.2f}); {new['better']} is better"
        )
  return found
