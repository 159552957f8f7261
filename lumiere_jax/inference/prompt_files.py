"""Prompt files: many videos from one run.

.txt    a prompt a line; blank lines and lines that begin with # are skipped
.csv    a header, then a row a prompt: columns prompt, seed and any option
.jsonl  {"prompt": ..., "seed": 1, ...} a line, with the same keys

Empty cells and null count as not given.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
import csv
import dataclasses
import io
import json
import os
from pathlib import Path
import re
import reprlib
from typing import Any

from lumiere_jax.errors import UserError, suggest
from lumiere_jax.storage.files import read_text

_Rows = Iterator[tuple[str, dict[str, Any]]]  # (file and line, its values)
_SEEDS = 2**32
_EXAMPLE = '{"prompt": "a dog runs", "seed": 1}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLine:
  """One video to make.

  Attributes:
    prompt: what it shows.
    seed: in [0, 2^32); None: not given.
    options: name -> value, as it would be written for a flag.
    where: its file and line with a colon, for errors.
  """

  prompt: str
  seed: int | None = None
  options: dict[str, str] = dataclasses.field(default_factory=dict)
  where: str = dataclasses.field(default="", compare=False)


def read_prompt_file(path: str | os.PathLike) -> list[PromptLine]:
  """Reads a prompt file in UTF-8; the module docstring describes the formats.

  Args:
    path: ends in .txt, .csv or .jsonl.

  Returns:
    One or more, in the order of the file. `check_options` checks their options.
  """
  readers = {".txt": _txt_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
  ending = Path(path).suffix.lower()
  if ending not in readers:
    raise UserError(
      f"{path}:",
      f"prompts cannot be read from files ending in {ending!r}",
      f"known: {', '.join(readers)}",
    )
  rows = readers[ending](os.fspath(path), read_text(path))
  lines = [_line(where, row) for where, row in rows]
  if not lines:
    raise UserError(f"{path}:", "has no prompts", "write one a line")
  return lines


def check_options(lines: Iterable[PromptLine], known: Collection[str]) -> None:
  """Raises a UserError where a line has an option that is not `known`."""
  for line in lines:
    for name in line.options:
      if name not in known:
        raise UserError(
          line.where,
          f"unknown option {name!r}{suggest(name, known)}",
          f"known: {', '.join(known)}",
        )


def _line(where: str, row: Mapping[str, Any]) -> PromptLine:
  if not isinstance(row.get("prompt", ""), str | None):
    raise UserError(
      where, f"the prompt is {reprlib.repr(row['prompt'])}", "write a string"
    )
  texts = {name: _text(where, name, value) for name, value in row.items()}
  options = {name: text for name, text in texts.items() if text}
  prompt, seed = options.pop("prompt", ""), options.pop("seed", None)
  if not prompt:
    raise UserError(where, "has no prompt", "write what the video shows")
  return PromptLine(
    prompt=prompt,
    seed=None if seed is None else _seed(where, seed),
    options=options,
    where=where,
  )


def _text(where: str, name: str, value: Any) -> str:
  """A value as it would be written for a flag; '' is none."""
  if value is None:
    return ""
  if isinstance(value, str):
    return value.strip()
  if not isinstance(value, bool | int | float):
    raise UserError(
      where,
      f"{name!r} is {reprlib.repr(value)}",
      "write a string, a number, true or false",
    )
  return json.dumps(value)


def _seed(where: str, text: str) -> int:
  # At most 10 digits: int() rejects thousands of them with another error.
  if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= _SEEDS:
    raise UserError(
      where,
      f"the seed is {reprlib.repr(text)}",
      "write a whole number in [0, 2^32)",
    )
  return int(text)


def _txt_rows(path: str, text: str) -> _Rows:
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip() and not line.strip().startswith("#"):
      yield f"{path}, line {number}:", {"prompt": line}


def _jsonl_rows(path: str, text: str) -> _Rows:
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    where = f"{path}, line {number}:"
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(
        where, f"not JSON ({error})", f"write {_EXAMPLE}"
      ) from error
    if not isinstance(row, dict):
      raise UserError(
        where, f"a {type(row).__name__}, not an object", f"write {_EXAMPLE}"
      )
    yield where, row


def _csv_rows(path: str, text: str) -> _Rows:
  rows = _csv_cells(path, text)
  where, columns = next(rows, ("", None))
  if columns is None:
    return
  _check_columns(where, columns)
  for where, cells in rows:
    if len(cells) != len(columns):
      raise UserError(
        where,
        f"{len(cells)} cells for {len(columns)} columns",
        "quote prompts that hold commas",
      )
    yield where, dict(zip(columns, cells, strict=True))


def _csv_cells(path: str, text: str) -> Iterator[tuple[str, list[str]]]:
  """Rows that are not empty; spreadsheets write rows of commas only."""
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  while True:
    where = f"{path}, line {reader.line_num + 1}:"
    try:
      cells = [cell.strip() for cell in next(reader)]
    except StopIteration:
      return
    except csv.Error as error:
      raise UserError(
        where, f"not CSV ({error})", "quote prompts that hold commas or quotes"
      ) from error
    if any(cells):
      yield where, cells


def _check_columns(where: str, columns: list[str]) -> None:
  named = f"the columns are {', '.join(map(repr, columns))}"
  if "prompt" not in columns:
    raise UserError(
      where, "no column 'prompt'", f"{named}; write prompt,seed as the header"
    )
  wrong = [c for c in columns if not c or columns.count(c) > 1]
  if wrong:
    raise UserError(
      where, named, f"give each a name of its own, and none {wrong[0]!r}"
    )
