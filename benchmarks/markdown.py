"""Markdown tables."""

from collections.abc import Iterable


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
  """A table with a head; None is an empty cell."""
  line = lambda cells: f"| {' | '.join(cells)} |"
  text = lambda cells: ["" if cell is None else str(cell) for cell in cells]
  names = text(head)
  return "\n".join(
    [line(names), "|---" * len(names) + "|", *map(line, map(text, rows))]
  )
