"""Weight folders of Hugging Face libraries: one safetensors file, or shards.

  config.json
  STEM.safetensors                    or STEM.VARIANT.safetensors
  STEM-00001-of-00002.safetensors     with an index:
  STEM.safetensors.index.json         or STEM.safetensors.index.VARIANT.json

STEM is `model` for transformers and `diffusion_pytorch_model` for diffusers.
"""

from collections.abc import Callable, Container, Mapping, Sequence
import json
import os
from pathlib import Path
import re
from typing import Any

from lumiere_jax.errors import UserError, option
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.safetensors import LazyArray

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object."""
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise UserError(
      f"{path}:", "no such file", "it belongs beside the weights"
    ) from error
  except OSError as error:
    raise UserError(
      f"{path}:", f"cannot be read ({error.strerror})", "give a JSON file"
    ) from error
  except ValueError as error:
    raise UserError(
      f"{path}:", f"not JSON ({error})", "download it again"
    ) from error
  if not isinstance(content, dict):
    raise UserError(f"{path}:", "not a JSON object", "download it again")
  return content


def check_known(
  content: Mapping[str, Any], known: Container[str], name: str, fix: str
) -> None:
  """Checks that a config has no key that is not `known`, unless it is null.

  Keys that begin with an underscore say where the config is from. `name` is
  its path, and `fix` what to give instead.
  """
  unknown = [
    f"{key}={value!r}"
    for key, value in content.items()
    if not (key in known or key.startswith("_") or value is None)
  ]
  if unknown:
    raise UserError(f"{name}:", f"unknown keys {', '.join(unknown)}", fix)


def open_weights(
  source: str | os.PathLike,
  stem: str,
  *,
  variant: str = "",
  keep: Callable[[str], bool] = lambda name: True,
) -> dict[str, LazyArray]:
  """Opens the tensors of a file or folder without reading them.

  Args:
    source: a safetensors file, or a folder.
    stem: of the names of its files.
    variant: such as 'fp16', if a folder holds several; '' is the plain one, or
      the only variant.
    keep: selects tensors by name; shards without any are not opened.
  """
  source = Path(source)
  if not source.exists():
    raise UserError(f"{source}:", "no such file or folder", "check the path")
  if source.is_file():
    refuse_pickle(source)
    return _select(safetensors.load_lazily(source, finite=True), keep)
  index = _find(source, f"{stem}.safetensors.index", ".json", variant)
  file = _find(source, stem, ".safetensors", variant)
  # Usually there is one of the two; else a plain one is preferred.
  plain_file = file and file.name == f"{stem}.safetensors"
  plain_index = index and index.name == f"{stem}.safetensors.index.json"
  if index and (plain_index or not plain_file):
    return _open_shards(source, index, keep)
  files = [file] if file else sorted(source.glob("*.safetensors"))
  if not files:
    refuse_pickle(*(f for p in _PICKLES for f in sorted(source.glob(p))))
    raise UserError(
      f"{source}:", "holds no .safetensors file", "check the path"
    )
  tensors: dict[str, LazyArray] = {}
  for each in files:
    found = _select(safetensors.load_lazily(each, finite=True), keep)
    if twice := sorted(found.keys() & tensors.keys()):
      raise UserError(
        f"{source}:",
        f"more than one file holds {twice[0]}",
        "name the file to use",
      )
    tensors |= found
  return tensors


def check_tensors(
  given: dict[str, Any],
  expected: dict[str, tuple[int, ...]],
  name: str,
  fix: str = "",
) -> None:
  """Checks names and shapes of tensors; the error names every difference.

  `name` is their source, and `fix` what to give instead.
  """
  faults = {
    "missing": sorted(expected.keys() - given.keys()),
    "unknown": sorted(given.keys() - expected.keys()),
    "of the wrong shape": [
      f"{k} {tuple(given[k].shape)} instead of {tuple(shape)}"
      for k, shape in sorted(expected.items())
      if k in given and tuple(given[k].shape) != tuple(shape)
    ],
  }
  if problems := describe_faults(faults):
    raise UserError(f"{name}:", problems, fix)


def describe_faults(faults: Mapping[str, Sequence[str]]) -> str:
  """One line about faulty tensors, by fault; '' if there are none."""
  return "; ".join(
    f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {fault} "
    f"({', '.join(names)})"
    for fault, names in faults.items()
    if names
  )


def _select(
  tensors: dict[str, LazyArray], keep: Callable[[str], bool]
) -> dict[str, LazyArray]:
  return {name: lazy for name, lazy in tensors.items() if keep(name)}


def _find(folder: Path, start: str, end: str, variant: str) -> Path | None:
  """The file START[.VARIANT]END, if it exists."""
  if variant:
    exact = folder / f"{start}.{variant}{end}"
    return exact if exact.is_file() else None
  plain = folder / f"{start}{end}"
  if plain.is_file():
    return plain
  middle = lambda f: f.name[len(start) + 1 : -len(end)]
  others = [
    f
    for f in sorted(folder.glob(f"{start}.*{end}"))
    if re.fullmatch(r"(?!.*-of-)[^.]+", middle(f))
  ]
  if len(others) > 1:
    names = ", ".join(f.name for f in others)
    raise UserError(
      f"{folder}:", f"holds {names}", f"choose one with {option('variant')}"
    )
  return others[0] if others else None


def _open_shards(
  folder: Path, index: Path, keep: Callable[[str], bool]
) -> dict[str, LazyArray]:
  where = read_json(index).get("weight_map")
  if not isinstance(where, dict) or not where:
    raise UserError(f"{index}:", "has no weight_map", "download it again")
  for file in sorted(set(map(str, where.values()))):
    if Path(file).name != file or file in ("", ".", ".."):
      raise UserError(
        f"{index}:",
        f"names {file!r}, which is outside the folder",
        "download the weights from a trusted source",
      )
  where = {name: file for name, file in where.items() if keep(name)}
  files = sorted(set(where.values()))
  if missing := [file for file in files if not (folder / file).is_file()]:
    raise UserError(
      f"{folder}:",
      f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, "
      f"which {index.name} names",
      "download all shards",
    )
  tensors: dict[str, LazyArray] = {}
  for file in files:
    found = safetensors.load_lazily(folder / file, finite=True)
    tensors |= {n: x for n, x in found.items() if where.get(n) == file}
  if missing := sorted(where.keys() - tensors.keys()):
    raise UserError(
      f"{index}:",
      f"names tensors that its files do not hold ({', '.join(missing)})",
      "download index and shards again, together",
    )
  return tensors


def refuse_pickle(*files: Path) -> None:
  """Raises a UserError for pickled weights; it says how to convert them."""
  pickles = [f for f in files if any(f.match(p) for p in _PICKLES)]
  if pickles:
    file = pickles[0]
    command = (
      "import sys, torch; from safetensors.torch import save_file; "
      "[save_file({k: v.clone() for k, v in torch.load(f, weights_only=True, "
      "map_location='cpu').items()}, f.rsplit('.', 1)[0] + '.safetensors') "
      "for f in sys.argv[1:]]"
    )
    raise UserError(
      f"{file}:",
      "pickled weights are not read, as they can run any code",
      f'convert them once: python -c "{command}" '
      + " ".join(map(str, pickles)),
    )
