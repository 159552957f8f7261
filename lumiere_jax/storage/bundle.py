"""Bundles: a folder that holds a whole cascade, or some of its stages.

  bundle.json         format, version, licence, stages and their configs
  NAME-*.safetensors  the weights of the stages and of the text encoder
  tokenizer.model     sentencepiece, with the text encoder

A bundle of stages alone goes with another one that has a text encoder. Put on
the Hugging Face hub as it is, it is known by its name there.

`bundle.json` names every other file and is replaced last, so a reader finds
one complete bundle at any moment, also while a newer one is being written.
"""

from collections.abc import Mapping
import dataclasses
from importlib import resources
import json
import os
from pathlib import Path
import shutil
from typing import Any

from lumiere_jax.errors import UserError, option
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import write_json, writing
from lumiere_jax.storage.hub import fetch, is_hub_name
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

FORMAT = "lumiere_jax"


VERSION = 2


TEXT = "text"
"""The part that is no stage: the text encoder."""


INDEX = "bundle.json"


SHIPPED = "demo"
"""The name of the bundle that comes with the package."""


_FILES = (INDEX, "*.safetensors", "*.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One stage or the text encoder: its description and its files.

  Attributes:
    meta: what JSON can hold; configs of the stage.
    tensors: safetensors files, relative to the bundle, that together hold it.
    files: other files by role, e.g. {'tokenizer': 'tokenizer.model'}.
  """

  meta: Mapping[str, Any]
  tensors: tuple[str, ...]
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
  """An opened bundle; weights are read by `load`, or leaf by leaf."""

  folder: Path
  parts: Mapping[str, Part]
  about: Mapping[str, Any]

  def load(self, name: str) -> FlatParams:
    """All leaves of one part, path -> array.

    Raises:
      UserError: a file is missing or damaged.
    """
    flat: FlatParams = {}
    for file in self.parts[name].tensors:
      flat |= safetensors.load(self.folder / file)
    return dict(sorted(flat.items()))

  def leaves(self, name: str) -> dict[str, LazyArray]:
    """The leaves of one part, each read when it is asked for.

    Raises:
      UserError: a file is missing or damaged.
    """
    flat: dict[str, LazyArray] = {}
    for file in self.parts[name].tensors:
      flat |= safetensors.load_lazily(self.folder / file)
    return dict(sorted(flat.items()))

  def file(self, name: str, role: str) -> Path:
    """Path of a file of a part, e.g. ('text', 'tokenizer')."""
    return self.folder / self.parts[name].files[role]


def find(path: str | os.PathLike, what: str) -> Path:
  """The bundle at `path`: the folder itself, or `bundle` in a workdir.

  Args:
    path: what the user gave; may be the name of a repository on the hub.
    what: the flag it came from, for the error.

  Raises:
    UserError: there is none.
  """
  folder = Path(path)
  if found := _local(folder) or _shipped(path):
    return found
  if is_hub_name(path):
    return find(fetch(str(path), _FILES), what)
  state = "has no bundle.json" if folder.is_dir() else "does not exist"
  raise UserError(
    f"{what}={path}",
    state,
    "give a bundle, or the workdir of a run that has saved one",
  )


def is_bundle(path: str | os.PathLike) -> bool:
  """Whether there is a bundle at `path` on this machine; see `find`."""
  return bool(_local(Path(path)) or _shipped(path))


def _local(folder: Path) -> Path | None:
  for candidate in (folder, folder / "bundle"):
    if (candidate / INDEX).is_file():
      return candidate
  return None


def _shipped(path: str | os.PathLike) -> Path | None:
  """'demo': the small cascade that comes with the package."""
  if str(path) != SHIPPED:
    return None
  return _local(Path(str(resources.files("lumiere_jax"))) / "assets" / SHIPPED)


def open_bundle(path: str | os.PathLike, what: str = option("model")) -> Bundle:
  """Reads bundle.json and checks that the files it names are there.

  Raises:
    UserError: no bundle there, not ours, of a newer version, or incomplete.
  """
  folder = find(path, what)
  try:
    index = json.loads((folder / INDEX).read_text())
    known = index["format"] == FORMAT
    version, parts = index["version"], index["parts"]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{folder / INDEX}",
      f"is damaged ({error})",
      "copy or export the bundle again",
    ) from error
  if not known or version > VERSION:
    raise UserError(
      f"{folder / INDEX}",
      f"has format {index['format']!r} version {version}",
      f"this program reads {FORMAT!r} up to {VERSION}: update it",
    )
  bundle = Bundle(
    folder=folder,
    parts={name: _part(part) for name, part in parts.items()},
    about=index.get("about", {}),
  )
  for part in bundle.parts.values():
    for file in (*part.tensors, *part.files.values()):
      if Path(file).name != file:
        raise UserError(
          f"{folder / INDEX}",
          f"names {file!r}, which lies outside the bundle",
          "get the bundle from where you trust it",
        )
      if not (folder / file).is_file():
        raise UserError(str(folder), f"lacks {file}, which its {INDEX} names")
  return bundle


def write(
  folder: str | os.PathLike,
  parts: Mapping[str, Part],
  about: Mapping[str, Any],
) -> None:
  """Replaces bundle.json, then removes tensors that it no longer names.

  The files of `parts` must be in the folder already: write them under names
  that the present bundle does not use.
  """
  folder = Path(folder)
  index = {
    "format": FORMAT,
    "version": VERSION,
    "about": dict(about),
    "parts": {k: dataclasses.asdict(v) for k, v in parts.items()},
  }
  write_json(folder / INDEX, index)
  named = {file for part in parts.values() for file in part.tensors}
  for old in folder.glob("*.safetensors"):
    if old.name not in named:
      old.unlink()


def join(paths: list[str | os.PathLike], folder: str | os.PathLike) -> None:
  """Makes one bundle of the parts of several; earlier ones win.

  Raises:
    UserError: the bundles were trained with different text encoders.
  """
  bundles = [open_bundle(path) for path in paths]
  check_same_text(bundles)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  parts: dict[str, Part] = {}
  for bundle in reversed(bundles):
    parts |= bundle.parts
    for part in bundle.parts.values():
      link_part(bundle, part, folder)
  write(folder, parts, bundles[0].about)


def link_part(bundle: Bundle, part: Part, folder: Path) -> None:
  """Links the files of a part of a bundle into another one's folder."""
  for file in (*part.tensors, *part.files.values()):
    link(bundle.folder / file, folder / file)


def check_same_text(bundles: list[Bundle]) -> None:
  """Raises a UserError unless all bundles that hold text hold the same."""
  texts = {
    str(b.folder): b.parts[TEXT].meta.get("identity")
    for b in bundles
    if TEXT in b.parts
  }
  if len(set(texts.values())) > 1:
    raise UserError(
      "",
      "these bundles were trained with different text encoders: "
      f"{', '.join(texts)}",
      "train them with the same config.text",
    )


def link(source: Path, target: Path) -> None:
  """A hard link (no second copy on disk), or a copy where links cannot be."""
  if target.exists():
    if target.samefile(source):
      return
    target.unlink()
  try:
    os.link(source, target)
  except OSError:
    with source.open("rb") as old, writing(target) as new:
      shutil.copyfileobj(old, new)


def _part(values: Mapping[str, Any]) -> Part:
  return Part(
    meta=values["meta"],
    tensors=tuple(values["tensors"]),
    files=values.get("files", {}),
  )
