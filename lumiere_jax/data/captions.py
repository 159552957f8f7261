"""Captions of a folder: tables, files beside the videos, or class labels."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import csv
import io
import json
from pathlib import Path
import posixpath
import re
import reprlib
import sys
from typing import Any, NamedTuple

from lumiere_jax.errors import UserError, suggest
from lumiere_jax.storage.files import read_text
from lumiere_jax.storage.remote import Folder, is_url

Captions = dict[str, tuple[str, ...]]
"""Name of a file or class -> its captions."""

# Between a lower-case and an upper-case letter, and before a capitalised word
# that follows an abbreviation, as in RidingABike.
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

# Only used to find files; captioned files of any other ending are read too, and
# the content of a file tells what it is.
MEDIA_ENDINGS = frozenset(
  {
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
    *(".apng", ".avif", ".bmp", ".heic", ".heif", ".hif", ".jfif", ".jp2"),
    *(".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
  }
)

_THREADS = 16  # That read caption files, which may be remote.


class _Form(NamedTuple):
  """A kind of table: its file name, and the names of its columns."""

  stem: str
  file: str
  texts: tuple[str, ...]


_OWN = _Form("captions", "file", ("caption",))
_HUGGING_FACE = _Form("metadata", "file_name", ("text", "caption"))

_Rows = Iterator[tuple[int, Any]]
"""(line number, row) of a table."""


def label_captions(labels: Iterable[str], prompts_file="") -> Captions:
  """Captions for classes.

  Args:
    labels: names of classes.
    prompts_file: lines 'label|prompt'; several lines of one label are
      alternative captions. '' takes the words of the labels.
  """
  labels = list(labels)
  if not prompts_file:
    return {label: (words(label),) for label in labels}
  prompts = _read_prompts(Path(prompts_file))
  for label in labels:
    if label not in prompts:
      raise UserError(
        f"{prompts_file}:",
        f"has no prompt for class {label!r}{suggest(label, prompts)}",
        f"add a line {label}|PROMPT",
      )
  return {label: prompts[label] for label in labels}


def words(label: str) -> str:
  """'ApplyEyeMakeup' -> 'apply eye makeup'; 'tai_chi' -> 'tai chi'."""
  spaced = _WORD_STARTS.sub(" ", label.replace("_", " "))
  return " ".join(spaced.lower().split()) or label


def _read_prompts(path: Path) -> Captions:
  prompts: Captions = {}
  for number, line in enumerate(read_text(path).split("\n"), 1):
    if not line.strip():
      continue
    label, _, prompt = (part.strip() for part in line.partition("|"))
    if not label or not prompt:
      raise UserError(
        f"{path}, line {number}:", f"{line.strip()[:80]!r} is not label|prompt"
      )
    prompts[label] = (*prompts.get(label, ()), prompt)
  return prompts


def read_captions(
  folder: Folder, prompts: str = "", required: bool = True
) -> Captions:
  """Reads the captions of a folder.

  It looks for captions.jsonl or captions.csv, then for metadata.jsonl or
  metadata.csv in any folder, then for a .txt or .json beside each video, then
  takes sub-folders as classes, captioned by the file `prompts`; see
  `label_captions`. A captioned file need not exist and its caption may be
  empty; the video index reports both.

  Without `required`, sub-folders are not taken as classes, and the result may
  be empty.

  Returns:
    Name in `folder`, or URL -> its captions, sorted by name.
  """
  tables = _find_tables(folder)
  captions = _collect(folder, tables) if tables else _beside_videos(folder)
  if required and not tables and not captions:
    captions = _from_classes(folder, prompts)
  if required and not captions:
    raise UserError(
      f"{folder}:",
      "no captions",
      "write captions.jsonl or captions.csv (file, caption), metadata.jsonl or "
      "metadata.csv (file_name, text), one .txt or .json beside each video, or "
      "put the videos of each class in a sub-folder",
    )
  return dict(sorted(captions.items()))


def _find_tables(folder: Folder) -> list[str]:
  """The tables of captions: captions.* if present, otherwise metadata.*."""
  for stem in (_OWN.stem, _HUGGING_FACE.stem):
    tables: dict[str, str] = {}
    for name in folder.names:
      place, base = posixpath.split(name)
      if base not in (f"{stem}.csv", f"{stem}.jsonl"):
        continue
      if place and stem == _OWN.stem:
        continue
      if place in tables:
        raise UserError(
          f"{folder}:", f"has {name} and {tables[place]}", "keep one of them"
        )
      tables[place] = name
    if tables:
      return list(tables.values())
  return []


def is_media(name: str) -> bool:
  """Whether a name has the ending of a video or picture."""
  return posixpath.splitext(name)[1].lower() in MEDIA_ENDINGS


def _read(folder: Folder, name: str) -> str:
  return read_text(folder.local(name), folder.address(name))


def _collect(folder: Folder, tables: Sequence[str]) -> Captions:
  """The captions of tables, each of which names files relative to itself."""
  captions: Captions = {}
  places: dict[str, str] = {}
  for table in tables:
    path, (below, base) = folder.address(table), posixpath.split(table)
    stem, ending = posixpath.splitext(base)
    form = _OWN if stem == _OWN.stem else _HUGGING_FACE
    read_rows = _csv_rows if ending == ".csv" else _jsonl_rows
    for number, row in read_rows(path, _read(folder, table), form):
      where = f"{path}, line {number}:"
      file = _file(where, row, form, below)
      if file in captions:
        raise UserError(
          where,
          f"{file} already has a caption on {places[file]}",
          "keep one of them",
        )
      places[file] = f"line {number}"
      if len(tables) > 1:
        places[file] += f" of {table}"
      captions[file] = _captions(where, row, *form.texts)
  return captions


def _jsonl_rows(path: str, text: str, form: _Form) -> _Rows:
  example = json.dumps({form.file: "x.mp4", form.texts[0]: "..."})
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    where = f"{path}, line {number}:"
    row = _parse_json(where, line, example)
    if not isinstance(row, dict):
      raise UserError(where, f"is a {type(row).__name__}", "write an object")
    yield number, row


def _csv_rows(path: str, text: str, form: _Form) -> _Rows:
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  columns: list[str] = []
  used: list[str] = []
  number = 0
  try:
    for cells in reader:
      number = reader.line_num
      if not any(map(str.strip, cells)):  # Spreadsheets write rows of commas.
        continue
      if not columns:
        columns = cells
        used = _used_columns(f"{path}, line {number}:", columns, form)
        continue
      if len(cells) != len(columns):
        raise UserError(
          f"{path}, line {number}:",
          f"does not have {len(columns)} columns",
          "quote captions that contain commas",
        )
      row = dict(zip(columns, cells, strict=True))
      # Other columns are ignored, even one called captions.
      yield number, {k: row[k] for k in used}
  except csv.Error as error:
    raise UserError(
      f"{path}, line {number + 1}:",
      f"not CSV ({error})",
      "quote captions that contain commas or quotes",
    ) from error


def _used_columns(where: str, columns: list[str], form: _Form) -> list[str]:
  used = []
  for names in ((form.file,), form.texts):
    found = [name for name in columns if name in names]
    if len(found) != 1:
      raise UserError(
        where,
        f"must have one column {' or '.join(map(repr, names))}, but has "
        f"{', '.join(map(repr, columns))}",
        f"name the columns {form.file},{form.texts[0]}",
      )
    used += found
  return used


def _parse_json(where: str, text: str, example: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(
      where, f"not JSON ({error.msg}, column {error.colno})", f"write {example}"
    ) from error
  except (ValueError, RecursionError) as error:  # huge numbers, deep nesting
    raise UserError(
      where, f"not usable JSON ({error})", f"write {example}"
    ) from error


def _file(where: str, row: dict[str, Any], form: _Form, below: str) -> str:
  file = row[_one_of(where, row, form.file)]
  if not isinstance(file, str) or not file.strip():
    raise UserError(
      where, f"{form.file!r} is {reprlib.repr(file)}", "name a video"
    )
  file = file.strip()
  return (
    file if is_url(file) else posixpath.normpath(posixpath.join(below, file))
  )


def _captions(where: str, row: dict[str, Any], *keys: str) -> tuple[str, ...]:
  return _texts(where, row[_one_of(where, row, *keys, "captions")])


def _one_of(where: str, row: dict[str, Any], *keys: str) -> str:
  """The key that a row has."""
  given = [key for key in keys if key in row]
  if not given:
    has = ", ".join(map(reprlib.repr, row)) or "nothing"
    raise UserError(where, f"no {keys[0]!r}", f"it has {has}")
  if len(given) > 1:
    both = " and ".join(map(repr, given))
    raise UserError(where, f"both {both}", "keep one of them")
  return given[0]


def _texts(where: str, value: Any) -> tuple[str, ...]:
  texts = value if isinstance(value, list) else [value]
  for text in texts:
    if not isinstance(text, str):
      raise UserError(
        where, f"a caption is {reprlib.repr(text)}", "write a string"
      )
  return tuple(text.strip() for text in texts if text.strip())


def _beside_videos(folder: Folder) -> Captions:
  """Captions in a .txt, or else a .json, with the name of the video."""
  parts = [(name, *posixpath.splitext(name)) for name in folder.names]
  texts = {stem: name for name, stem, end in parts if end == ".json"}
  texts |= {stem: name for name, stem, end in parts if end == ".txt"}
  files = {
    name: texts[stem]
    for name, stem, end in parts
    if end not in (".json", ".txt") and stem in texts
  }
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    captions = pool.map(lambda name: _from_file(folder, name), files.values())
    return dict(zip(files, captions, strict=True))


def _from_file(folder: Folder, name: str) -> tuple[str, ...]:
  text, where = _read(folder, name), f"{folder.address(name)}:"
  if name.endswith(".txt"):
    return _texts(where, " ".join(text.split()))
  value = _parse_json(where, text, '{"caption": "..."}')
  if isinstance(value, dict):
    return _captions(where, value, "caption")
  return _texts(where, value)


def _from_classes(folder: Folder, prompts: str) -> Captions:
  labels = {
    name: name.split("/")[-2]
    for name in folder.names
    if "/" in name and is_media(name)
  }
  if not labels:
    return {}
  captions = label_captions(sorted(set(labels.values())), prompts)
  example = next(iter(captions.values()))[0]
  print(
    f"data: {folder} has no captions; its {len(captions)} sub-folders are "
    f"used as classes, for example {example!r}",
    file=sys.stderr,
  )
  return {name: captions[label] for name, label in labels.items()}
