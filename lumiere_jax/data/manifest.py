"""`prepared.json`: what `prepare` has made, and the names that go with it."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

from lumiere_jax.errors import UserError
from lumiere_jax.storage.atomic import writing
from lumiere_jax.storage.files import read_text
from lumiere_jax.storage.remote import Folder

NAME = "prepared.json"


CLIPS = "clips"
"""What the names of shards of clips begin with."""


VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
  """A clip, as it is stored: an mp4, or a png of a picture.

  Attributes:
    key: of its record; a hash of the file's content, the part of it and how
      it was encoded.
    file: that it was cut from.
    captions: what it shows.
    start_s: where it begins in the file.
    seconds: how long it is there; 0: a picture.
    frames: at the frame rate it was prepared for.
    height, width: in pixels.
  """

  key: str
  file: str
  captions: tuple[str, ...]
  start_s: float
  seconds: float
  frames: int
  height: int
  width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a prepared folder holds.

  Attributes:
    options: that it was prepared with; `fps` is one of them.
    text: identity of the encoder whose features are there; '' is none.
    clips: in the order of their files.
  """

  options: Mapping[str, Any]
  text: str
  clips: tuple[Stored, ...]

  def write(self, folder) -> None:
    """Writes it unless it is there, a clip a line.

    Raises:
      UserError: the place cannot be written.
    """
    head = {"version": VERSION, "options": self.options, "text": self.text}
    lines = [json.dumps(vars(clip), ensure_ascii=False) for clip in self.clips]
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    text += ',\n "clips": [\n' + ",\n".join(lines) + "\n]}\n"
    # Names of files need not be Unicode; JSON reads what becomes of them.
    data, path = text.encode(errors="backslashreplace"), Path(folder, NAME)
    if path.exists() and path.read_bytes() == data:
      return
    with writing(path) as file:
      file.write(data)


def read_manifest(folder: Folder) -> Manifest:
  """What a folder holds that `prepare` has finished.

  Raises:
    UserError: it has not, it is of a newer version, or the file is broken.
  """
  if NAME not in folder.names:
    raise UserError(f"{folder}:", f"{_why_none(folder)}")
  where = folder.address(NAME)
  try:
    values = json.loads(read_text(folder.local(NAME), where))
    if values["version"] > VERSION:
      raise UserError(
        f"{where}:",
        f"version {values['version']}, made by a newer lumiere_jax",
        f"this one reads {VERSION}: update it, or prepare the data with it",
      )
    return Manifest(
      options=values["options"],
      text=values["text"],
      clips=tuple(map(_clip, values["clips"])),
    )
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{where}:",
      f"broken ({error!r})",
      "run lumiere_jax.prepare again, it keeps what is there",
    ) from error


def _clip(values: dict[str, Any]) -> Stored:
  return Stored(**values | {"captions": tuple(values["captions"])})


def _why_none(folder: Folder) -> str:
  if any(name.startswith(f"{CLIPS}-") for name in folder.names):
    return (
      f"unfinished: clips but no {NAME}; run again the lumiere_jax.prepare "
      "that made it, it goes on where it was"
    )
  return (
    f"not a prepared folder: no {NAME}; make one with python -m "
    f"lumiere_jax.prepare --input=VIDEOS --out={folder}"
  )
