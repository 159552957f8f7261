"""Captions of a folder of videos.

captions.jsonl  one {"file": ..., "caption": ...} a line
captions.csv    columns file and caption
NAME.txt        beside each NAME.mp4, .mkv or whatever it is
"""

from collections.abc import Iterator
import csv
import io
import json
from pathlib import Path
import posixpath
from typing import Any

from lumiere_jax.typing import UserError

_KEYS = ("file", "caption")


def read_captions(folder) -> dict[str, str]:
  """Reads the captions of a folder, from whichever of the three is there.

  A name that is captioned need not exist, and a caption may be empty: whether
  a video can be used is for the reader of the videos to say.

  Returns:
    file name relative to `folder` -> caption, in the order of the names.

  Raises:
    UserError: no captions, two kinds of them, or a line that cannot be used.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; give a folder of videos")
  tables = {"captions.jsonl": _jsonl_rows, "captions.csv": _csv_rows}
  present = [name for name in tables if (folder / name).exists()]
  if len(present) > 1:
    raise UserError(f"{folder}: has {' and '.join(present)}; keep one of them")
  if present:
    path = folder / present[0]
    captions = _collect(path, tables[path.name](path, _read_text(path)))
  else:
    captions = _beside_videos(folder)
  if not captions:
    raise UserError(
      f"{folder}: no captions; write captions.jsonl or captions.csv "
      "(file, caption), or one .txt beside each video"
    )
  return dict(sorted(captions.items()))


def _read_text(path: Path) -> str:
  data = path.read_bytes()
  try:
    return data.decode("utf-8-sig")  # spreadsheets put a byte order mark
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b"\n") + 1
    raise UserError(
      f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); "
      "save it as UTF-8"
    ) from error


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      yield number, json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(
        f"{path}, line {number}: not JSON ({error.msg}, column "
        f'{error.colno}); write {{"file": "x.mp4", "caption": "..."}}'
      ) from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise UserError(
      f"{path}, line {reader.line_num + 1}: not CSV ({error}); "
      "quote captions that hold commas or quotes"
    ) from error


def _collect(path: Path, rows: Iterator[tuple[int, Any]]) -> dict[str, str]:
  captions, lines = {}, {}
  for number, row in rows:
    where = f"{path}, line {number}"
    name, caption = _file_and_caption(where, row)
    if name in captions:
      raise UserError(
        f"{where}: {name} is captioned on line {lines[name]} already; "
        "keep one of them"
      )
    captions[name], lines[name] = caption, number
  return captions


def _file_and_caption(where: str, row: Any) -> tuple[str, str]:
  if not isinstance(row, dict):
    raise UserError(f"{where}: a {type(row).__name__}; write an object")
  for key in _KEYS:
    if key not in row:
      found = ", ".join(map(str, row)) or "nothing"
      raise UserError(f"{where}: no {key!r}; it has {found}")
    if not isinstance(row[key], str):
      raise UserError(f"{where}: {key!r} is {row[key]!r}; write a string")
  if not row["file"].strip():
    raise UserError(f"{where}: 'file' is empty; name a video")
  return posixpath.normpath(row["file"].strip()), row["caption"].strip()


def _beside_videos(folder: Path) -> dict[str, str]:
  files = list(visible_files(folder))
  texts = {f.with_suffix(""): f for f in files if f.suffix == ".txt"}
  return {
    file.relative_to(folder).as_posix(): " ".join(_read_text(text).split())
    for file in files
    if file.suffix != ".txt" and (text := texts.get(file.with_suffix("")))
  }


def visible_files(folder: Path) -> Iterator[Path]:
  """All files in `folder` and below, in order, without the hidden ones."""
  for path in sorted(folder.rglob("*")):
    hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
    if not hidden and path.is_file():
      yield path
