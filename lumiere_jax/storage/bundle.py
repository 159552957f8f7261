"""Bundles: folders with a whole cascade, or some of its stages.

  bundle.json         format, version, licence, stages and their configs
  NAME-*.safetensors  the weights of the stages and of the text encoder
  tokenizer.model     sentencepiece, with the text encoder
  README.md           the model card

A bundle without a text encoder is used together with one that has it. Bundles
can be uploaded to the Hugging Face hub and then be loaded by name. The card is
written by `storage.card`.

`bundle.json` names all other files and is replaced last, so that readers always
find a complete bundle, also while another is being written.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import filecmp
from importlib import resources
import itertools
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any

from lumiere_jax.errors import UserError, option
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import AnyPath, write_json, writing
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

FORMAT = "lumiere_jax"
VERSION = 2
TEXT = "text"
"""The name of the part that is the text encoder; others are stages."""

INDEX = "bundle.json"
SHIPPED = "demo"
"""The name of the bundle that the package contains."""

_FILES = (INDEX, "*.safetensors", "*.model")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One stage or the text encoder.

  Attributes:
    meta: its configs and description, as JSON values.
    tensors: safetensors files with its weights, relative to the bundle.
    files: other files by role, e.g. {'tokenizer': 'tokenizer.model'}.
  """

  meta: Mapping[str, Any]
  tensors: tuple[str, ...]
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
  """An opened bundle; its weights are not read yet."""

  folder: Path
  parts: Mapping[str, Part]
  about: Mapping[str, Any]

  def load(self, name: str) -> FlatParams:
    """Reads all leaves of one part: path -> array; all must be finite."""
    return self._merge(name, safetensors.load)

  def leaves(self, name: str) -> dict[str, LazyArray]:
    """The leaves of one part, each read on access; they must be finite then."""
    return self._merge(name, safetensors.load_lazily)

  def _merge(self, name: str, read: Callable[..., Mapping]) -> dict:
    flat: dict = {}
    for file in self.parts[name].tensors:
      flat |= read(self.folder / file, finite=True)
    return dict(sorted(flat.items()))

  def file(self, name: str, role: str) -> Path:
    """Path of a file of a part, e.g. ('text', 'tokenizer')."""
    return self.folder / self.parts[name].files[role]


def find(path: AnyPath, what: str) -> Path:
  """The folder of a bundle.

  Args:
    path: the bundle, a workdir that has one, `SHIPPED`, or the name of a
      repository on the hub.
    what: the option it came from, for the error.
  """
  if found := _local(path):
    return found
  if is_hub_name(path):
    return find(_download(str(path)), what)
  state = "has no bundle.json" if Path(path).is_dir() else "does not exist"
  raise UserError(
    f"{what}={path}",
    state,
    "give a bundle, or the workdir of a run that has saved one",
  )


def is_bundle(path: AnyPath) -> bool:
  """Whether `find` finds a bundle at `path` without a download."""
  return _local(path) is not None


def _local(path: AnyPath) -> Path | None:
  shipped = Path(str(resources.files("lumiere_jax"))) / "assets" / SHIPPED
  places = [Path(path), Path(path, "bundle")]
  places += [shipped] if str(path) == SHIPPED else []
  return next((place for place in places if (place / INDEX).is_file()), None)


def is_hub_name(name: AnyPath) -> bool:
  """Whether `name` can be `owner/name[@revision]` rather than a local path.

  If its first folder exists, it is taken for a misspelt path.
  """
  owner = str(name).partition("/")[0]
  return bool(_HUB_NAME.fullmatch(str(name))) and not Path(owner).exists()


def _download(name: str) -> Path:
  """The local folder of a repository, downloaded on first use."""
  import huggingface_hub  # slow to import and rarely needed

  owner_and_name, _, revision = name.partition("@")
  try:
    folder = huggingface_hub.snapshot_download(
      owner_and_name, revision=revision or None, allow_patterns=list(_FILES)
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      name,
      "is not a local folder and could not be downloaded from the Hugging Face "
      f"hub ({reason})",
      "check the name, your access and the network",
    ) from error
  return Path(folder)


def open_bundle(path: AnyPath, what: str = option("model")) -> Bundle:
  """Reads bundle.json and checks that the files it names exist."""
  folder = find(path, what)
  where = str(folder / INDEX)
  try:
    index = json.loads((folder / INDEX).read_text())
    known = index["format"] == FORMAT
    version, parts = index["version"], index["parts"]
  except (ValueError, KeyError, TypeError) as error:
    fix = "copy or export the bundle again"
    raise UserError(where, f"is damaged ({error})", fix) from error
  if not known or version > VERSION:
    raise UserError(
      where,
      f"has format {index['format']!r} version {version}",
      f"this program reads {FORMAT!r} up to {VERSION}: update it",
    )
  opened = {
    name: Part(
      meta=p["meta"], tensors=tuple(p["tensors"]), files=p.get("files", {})
    )
    for name, p in parts.items()
  }
  for part in opened.values():
    for file in (*part.tensors, *part.files.values()):
      if Path(file).name != file:
        problem = f"names {file!r}, which is outside the bundle"
        fix = "get the bundle from a source that you trust"
        raise UserError(where, problem, fix)
      if not (folder / file).is_file():
        problem = f"lacks {file}, which its {INDEX} names"
        fix = "copy or export the bundle again"
        raise UserError(str(folder), problem, fix)
  return Bundle(folder=folder, parts=opened, about=index.get("about", {}))


def write(
  folder: AnyPath, parts: Mapping[str, Part], about: Mapping[str, Any]
) -> None:
  """Replaces bundle.json, then removes the tensors that only the old one names.

  Write the files of `parts` into the folder first, under names that the old
  bundle does not use. Other files in the folder are left alone.
  """
  folder = Path(folder)
  old: Mapping[str, Part] = {}
  with contextlib.suppress(UserError):  # there is none, or it is damaged
    old = open_bundle(folder).parts if (folder / INDEX).is_file() else {}
  index = {
    "format": FORMAT,
    "version": VERSION,
    "about": dict(about),
    "parts": {k: dataclasses.asdict(v) for k, v in parts.items()},
  }
  write_json(folder / INDEX, index)
  tensors = lambda parts: {k for part in parts.values() for k in part.tensors}
  for file in tensors(old) - tensors(parts):
    (folder / file).unlink()


def link_part(bundle: Bundle, part: Part, folder: Path) -> Part:
  """Links the files of a part into the folder of another bundle."""
  into = lambda file: link(bundle.folder / file, folder)
  return dataclasses.replace(
    part,
    tensors=tuple(map(into, part.tensors)),
    files={role: into(file) for role, file in part.files.items()},
  )


def check_same_text(bundles: list[Bundle]) -> None:
  """Raises a UserError if the bundles have different text encoders."""
  texts = {
    str(b.folder): b.parts[TEXT].meta.get("identity")
    for b in bundles
    if TEXT in b.parts
  }
  if len(set(texts.values())) > 1:
    raise UserError(
      f"{', '.join(texts)}:",
      "these bundles were trained with different text encoders",
      "train them with the same config.text",
    )


def link(source: Path, folder: Path, name: str = "") -> str:
  """Makes a hard link, or a copy on file systems without links.

  Returns its name in the folder: that of `source` or the given one, with a
  number where a file with other content has that name.
  """
  first = Path(name or source.name)
  names = (f"{first.stem}-{k}{first.suffix}" for k in itertools.count(2))
  for name in itertools.chain([first.name], names):
    target = folder / name
    if not os.path.lexists(target):
      break
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
      return name
  try:
    os.link(source, target)
  except OSError:
    with source.open("rb") as old, writing(target) as new:
      shutil.copyfileobj(old, new)
  return name
