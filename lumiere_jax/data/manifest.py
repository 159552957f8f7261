"""The manifest of a prepared folder, `prepared.json`."""

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
"""Prefix of the names of clip shards."""

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredClip:
  """A clip in a shard: an mp4, or a png of a picture.

  Attributes:
    key: of its record: a hash of the source file, the segment of it and the
      encoding options.
    start_s: where it begins in the source file.
    seconds: its duration; 0 for a picture.
    frames: number of frames at the frame rate of the folder.
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
  """The contents of a prepared folder.

  Attributes:
    options: options it was prepared with, among them `fps`.
    text: identity of the encoder of the stored text features; '' if none.
    clips: in the order of their source files.
  """

  options: Mapping[str, Any]
  text: str
  clips: tuple[StoredClip, ...]

  def write(self, folder) -> None:
    """Writes the file, one clip per line, unless it is already up to date."""
    head = {"version": VERSION, "options": self.options, "text": self.text}
    lines = [json.dumps(vars(clip), ensure_ascii=False) for clip in self.clips]
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    text += ',\n "clips": [\n' + ",\n".join(lines) + "\n]}\n"
    # File names need not be valid Unicode; JSON reads the escapes back.
    data, path = text.encode(errors="backslashreplace"), Path(folder, NAME)
    if path.exists() and path.read_bytes() == data:
      return
    with writing(path) as file:
      file.write(data)


def read_manifest(folder: Folder) -> Manifest:
  """Reads the manifest of a folder that `prepare` has finished."""
  where = folder.address(NAME)
  if NAME not in folder.names:
    problem = f"not a prepared folder: no {NAME}"
    fix = "make one with python -m lumiere_jax.prepare --input=VIDEOS --out="
    fix += str(folder)
    if any(name.startswith(f"{CLIPS}-") for name in folder.names):
      problem = f"unfinished: clips but no {NAME}"
      fix = "run lumiere_jax.prepare again with the same flags; it continues "
      fix += "where it stopped"
    raise UserError(f"{folder}:", problem, fix)
  try:
    values = json.loads(read_text(folder.local(NAME), where))
    if values["version"] > VERSION:
      raise UserError(
        f"{where}:",
        f"version {values['version']} was written by a newer lumiere_jax; this "
        f"one reads version {VERSION}",
        "update lumiere_jax, or prepare the data again",
      )
    clips = [
      StoredClip(**clip | {"captions": tuple(clip["captions"])})
      for clip in values["clips"]
    ]
    return Manifest(
      options=values["options"], text=values["text"], clips=tuple(clips)
    )
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{where}:",
      f"broken ({error!r})",
      "run lumiere_jax.prepare again; it keeps the clips that are stored",
    ) from error
