"""JSON-lines files that stay right however often a run is killed."""

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import Any

from lumiere_jax.io.atomic import writing
from lumiere_jax.typing import UserError


class JsonLines:
  """One JSON object a line, appended and flushed to disk."""

  def __init__(self, path: Path):
    self.path = path

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes one line; it is on disk when this returns."""
    with self.path.open("a") as file:
      file.write(json.dumps(record) + "\n")
      file.flush()
      os.fsync(file.fileno())

  def read(self) -> list[dict[str, Any]]:
    """All complete lines; a last one cut short by a kill is left out.

    Raises:
      UserError: a line before the last is not JSON.
    """
    if not self.path.exists():
      return []
    lines = self.path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines, 1):
      try:
        records += [json.loads(line)] if line else []
      except ValueError as error:
        if number == len(lines):
          break
        raise UserError(
          f"{self.path}, line {number} is not JSON ({error}); mend or remove "
          "the line"
        ) from error
    return records

  def rewind(self, step: int) -> None:
    """Removes what a killed run wrote beyond the step it resumes from."""
    if not self.path.exists():
      return
    kept = [r for r in self.read() if r["step"] <= step]
    with writing(self.path) as file:
      file.write("".join(json.dumps(r) + "\n" for r in kept).encode())
