"""LoRA adapter files, and merging them into the weights of stages.

Adapters trained here record their stage and a fingerprint of the weights they
were trained on. Those published for DeepFloyd IF record neither: they belong to
the stage that they fit.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path

from lumiere_jax.errors import UserError, option
from lumiere_jax.models import lora
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers import lora_diffusers
from lumiere_jax.models.importers.hf_checkpoint import read_json, refuse_pickle
from lumiere_jax.storage import safetensors
from lumiere_jax.typing import FlatParams

FORMAT = "lumiere_jax adapter 1"
_PEFT, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FILES = ("adapter.safetensors", "pytorch_lora_weights.safetensors", _PEFT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
  """An adapter trained by this package.

  Attributes:
    path: as the user gave it.
    flat: its leaves.
    stage: that it belongs to.
    base: fingerprint of the weights it was trained on.
    base_name: name of these weights.
  """

  path: str
  flat: FlatParams
  stage: str
  base: str
  base_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedAdapter:
  """An adapter in the format of diffusers or PEFT.

  Attributes:
    path: as the user gave it.
    layers: its layers by name.
    stage: that the user named; '' is the one it fits.
  """

  path: str
  layers: Mapping[str, lora_diffusers.Layer]
  stage: str = ""


def fingerprint(flat: FlatParams) -> str:
  """Hash of the weights' content, 16 hex digits."""
  return safetensors.content_hash(flat)[:16]


def write_adapter(
  path: str | os.PathLike,
  flat: FlatParams,
  *,
  stage: str,
  base: str,
  base_name: str,
  step: int,
) -> None:
  """Writes adapter leaves, with the scale included: they add A B.

  Args:
    path: a .safetensors file.
    flat: leaves under `lora.PREFIX`.
    stage: that it belongs to.
    base: fingerprint of the weights it was trained on.
    base_name: name of these weights.
    step: of training.
  """
  about = {"stage": stage, "base": base, "base_name": base_name}
  safetensors.save(path, flat, {"format": FORMAT, **about, "step": str(step)})


def is_adapter(path: str | os.PathLike) -> bool:
  """Whether there is a file, or a folder with the file of an adapter."""
  place = Path(path)
  return place.is_file() or any((place / file).is_file() for file in _FILES)


def split_stage(path: str | os.PathLike) -> tuple[Path, str]:
  """Splits STAGE=PATH; of a path alone, the stage is ''."""
  stage, equals, rest = str(path).partition("=")
  if equals and not Path(path).exists():
    return Path(rest), stage
  return Path(path), ""


def read_adapter(
  path: str | os.PathLike, flag: str = option("adapter")
) -> Adapter | PublishedAdapter:
  """Reads an adapter of ours, or one of DeepFloyd IF by diffusers or PEFT.

  Args:
    path: the file, a workdir, or a folder as diffusers or PEFT write it;
      STAGE=PATH puts it on that stage.
    flag: the option it came from, for errors.
  """
  place, stage = split_stage(path)
  name = f"{flag}={path}"
  file = _file(place, name)
  about = safetensors.load_metadata(file)
  if not about.get("format", "").startswith("lumiere_jax"):
    layers = _published_layers(file, about, name)
    return PublishedAdapter(path=str(path), layers=layers, stage=stage)
  if about["format"] != FORMAT:
    raise UserError(
      name,
      f"has the unknown format {about['format']!r}",
      "give adapter.safetensors of a run with config.lora.rank",
    )
  if stage not in ("", about["stage"]):
    raise UserError(
      name, f"was trained for stage {about['stage']!r}", f"give it as {place}"
    )
  return Adapter(
    path=str(path),
    flat=safetensors.load(file, finite=True),
    stage=about["stage"],
    base=about["base"],
    base_name=about["base_name"],
  )


def apply_adapters(
  adapters: Sequence[Adapter | PublishedAdapter],
  weights: Mapping[str, FlatParams],
  models: Mapping[str, UNetConfig],
  scale: float,
) -> dict[str, FlatParams]:
  """Weights of all stages, with adapters merged into theirs.

  Lazy leaves stay lazy. `models` are the configs of the stages' networks; a
  `scale` of 1 is as trained.
  """
  merged = dict(weights)
  for adapter in adapters:
    if isinstance(adapter, Adapter):
      check_base(adapter, weights)
      stage, change = adapter.stage, adapter.flat
    else:
      stage = find_stage(adapter, {name: models[name] for name in weights})
      change = lora_diffusers.from_diffusers(
        adapter.layers, models[stage], f"{option('adapter')}={adapter.path}"
      )
    merged[stage] = lora.merge({**merged[stage], **lora.scaled(change, scale)})
  return merged


def check_base(adapter: Adapter, weights: Mapping[str, FlatParams]) -> None:
  """Raises a UserError unless `weights` hold what it was trained on."""
  name = f"{option('adapter')}={adapter.path}"
  if adapter.stage not in weights:
    raise UserError(
      name,
      f"is for stage {adapter.stage!r}, {option('model')} holds "
      f"{', '.join(weights)}",
      "give the model it was trained on",
    )
  base = weights[adapter.stage]
  lora.check_fits(base, adapter.flat, name)
  if (given := fingerprint(base)) != adapter.base:
    raise UserError(
      name,
      f"was trained on the {adapter.stage} of {adapter.base_name!r} "
      f"(weights {adapter.base}), and {option('model')} holds other "
      f"weights ({given})",
      "give the model it was trained on",
    )


def find_stage(
  adapter: PublishedAdapter, models: Mapping[str, UNetConfig]
) -> str:
  """The stage whose kernels an adapter fits; an error where it is not one."""
  name = f"{option('adapter')}={adapter.path}"
  if adapter.stage and adapter.stage not in models:
    raise UserError(
      f"{name}:",
      f"{option('model')} has no stage {adapter.stage!r}, it holds "
      f"{', '.join(models)}",
      "name one of these",
    )
  misfits = {
    stage: lora_diffusers.misfits(adapter.layers, models[stage])
    for stage in ([adapter.stage] if adapter.stage else models)
  }
  fitting = [stage for stage, reason in misfits.items() if not reason]
  if not fitting:
    reasons = "; ".join(f"for {k}: {reason}" for k, reason in misfits.items())
    raise UserError(
      name,
      f"fits no stage of {option('model')}: {reasons}",
      "give the model it was made for",
    )
  if len(fitting) > 1:
    raise UserError(
      name,
      f"fits the stages {', '.join(fitting)}",
      f"say which, as {option('adapter')}={fitting[0]}={adapter.path}",
    )
  return fitting[0]


def _file(place: Path, name: str) -> Path:
  """The file of an adapter, which may be in a folder."""
  if not place.is_dir():
    refuse_pickle(place)
    return place
  there = [file for file in _FILES if (place / file).is_file()]
  if not there:
    refuse_pickle(*sorted(place.iterdir()))
    raise UserError(name, f"holds no {', '.join(_FILES)}", "name the file")
  if len(there) > 1:
    raise UserError(name, f"holds {', '.join(there)}", "name the file to use")
  return place / there[0]


def _published_layers(
  file: Path, about: Mapping[str, str], name: str
) -> dict[str, lora_diffusers.Layer]:
  tensors = safetensors.load_lazily(file, finite=True)
  prefix, config = lora_diffusers.PEFT_PREFIX, file.parent / _CONFIG
  is_peft = file.name == _PEFT or any(key.startswith(prefix) for key in tensors)
  # In a folder with PEFT's file, the config belongs to that one.
  beside = config.is_file() and not (file.parent / _PEFT).is_file()
  settings = lora_diffusers.settings_of(
    about,
    name,
    config=read_json(config) if is_peft or beside else None,
    alpha_tensors=any(key.endswith("alpha") for key in tensors),
  )
  return lora_diffusers.read_layers(tensors, settings, name)
