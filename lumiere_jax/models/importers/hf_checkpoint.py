"""Folders of weights as others publish them: one safetensors file, or shards.

  config.json
  STEM.safetensors                    or STEM.VARIANT.safetensors
  STEM-00001-of-00002.safetensors     where there is an index:
  STEM.safetensors.index.json         or STEM.safetensors.index.VARIANT.json

STEM is `model` for transformers and `diffusion_pytorch_model` for diffusers.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
  """A JSON object.

  Raises:
    UserError: the file is missing, or holds no object.
  """
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
      f"{path}:", f"not JSON ({error})", "fetch it again"
    ) from error
  if not isinstance(content, dict):
    raise UserError(f"{path}:", "not a JSON object", "fetch it again")
  return content


def open_weights(
  source: str | os.PathLike,
  stem: str,
  *,
  variant: str = "",
  keep: Callable[[str], bool] = lambda name: True,
) -> dict[str, LazyArray]:
  """The tensors of a file, or of a folder's file or shards, unread.

  Args:
    source: a safetensors file, or a folder.
    stem: what its files are called.
    variant: such as 'fp16', where a folder holds several; '' is the plain one,
      or the only one there is.
    keep: names of tensors that are wanted; shards without any are not opened.

  Raises:
    UserError: there are none, they are pickled, shards are missing, broken,
      outside the folder, or do not hold what the index says.
  """
  source = Path(source)
  if not source.exists():
    raise UserError(f"{source}:", "no such file or folder", "check the path")
  if source.is_file():
    refuse_pickle(source)
    return _kept(safetensors.load_lazily(source), keep)
  index = _find(source, f"{stem}.safetensors.index", ".json", variant)
  file = _find(source, stem, ".safetensors", variant)
  # As a rule there is one of the two; else the plain one goes before a variant.
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
    for name, lazy in _kept(safetensors.load_lazily(each), keep).items():
      if name in tensors:
        raise UserError(
          f"{source}:",
          f"more than one file holds {name}",
          "name the file to use",
        )
      tensors[name] = lazy
  return tensors


def check_tensors(
  given: dict[str, Any], expected: dict[str, tuple[int, ...]], name: str
) -> None:
  """Raises a UserError that names every tensor in which two sets differ.

  Args:
    given: name -> array.
    expected: name -> shape.
    name: where the first are from and what they should be, for the user.
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
  if told := tell_faults(faults):
    raise UserError(f"{name}:", told)


def tell_faults(faults: Mapping[str, Sequence[str]]) -> str:
  """Tensors by what is wrong with them, in words; '' if there are none."""
  return "; ".join(
    f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {fault} "
    f"({', '.join(names)})"
    for fault, names in faults.items()
    if names
  )


def _kept(
  tensors: dict[str, LazyArray], keep: Callable[[str], bool]
) -> dict[str, LazyArray]:
  return {name: lazy for name, lazy in tensors.items() if keep(name)}


def _find(folder: Path, start: str, end: str, variant: str) -> Path | None:
  """The file START[.VARIANT]END, if there is one."""
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
      f"{folder}:", f"holds {names}", f"say which with {option('variant')}"
    )
  return others[0] if others else None


def _open_shards(
  folder: Path, index: Path, keep: Callable[[str], bool]
) -> dict[str, LazyArray]:
  where = read_json(index).get("weight_map")
  if not isinstance(where, dict) or not where:
    raise UserError(f"{index}:", "has no weight_map", "fetch it again")
  for file in sorted(set(map(str, where.values()))):
    if Path(file).name != file or file in ("", ".", ".."):
      raise UserError(
        index,
        f"names {file!r}, which lies outside the folder",
        "get the weights from where you trust them",
      )
  where = {name: file for name, file in where.items() if keep(name)}
  files = sorted(set(where.values()))
  _require(folder, files, index)
  tensors: dict[str, LazyArray] = {}
  for file in files:
    found = safetensors.load_lazily(folder / file)
    tensors |= {n: x for n, x in found.items() if where.get(n) == file}
  lost = sorted(where.keys() - tensors.keys())
  if lost:
    raise UserError(
      index,
      f"names tensors that its files do not hold ({', '.join(lost)})",
      "fetch index and shards again, together",
    )
  return tensors


def _require(folder: Path, files: Collection[str], index: Path) -> None:
  lost = [file for file in files if not (folder / file).is_file()]
  if lost:
    raise UserError(
      str(folder),
      f"lacks {', '.join(lost)}, which {index.name} names",
      f"fetch {'it' if len(lost) == 1 else 'them'} too",
    )


def refuse_pickle(*files: Path) -> None:
  """Says how to convert pickled weights, which are not read: they run code."""
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
      f"{file}: pickled weights are not read, as they can run any code; "
      f'convert them once: python -c "{command}" ' + " ".join(map(str, pickles))
    )
