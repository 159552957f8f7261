"""Low-rank adapters as small files, and stages that wear them."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path

from lumiere_jax.io import safetensors
from lumiere_jax.models import lora
from lumiere_jax.typing import FlatParams, UserError

FORMAT = "lumiere_jax adapter 1"
FINGERPRINT = 16
"""Digits of the hash of weights that tell them apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
  """An adapter that has been read.

  Attributes:
    path: where it lies.
    flat: its leaves.
    stage: that it belongs to.
    base: fingerprint of the weights it was trained on.
    base_name: what these were called.
  """

  path: str
  flat: FlatParams
  stage: str
  base: str
  base_name: str


def fingerprint(flat: FlatParams) -> str:
  """Tells weights apart by their content."""
  return safetensors.content_hash(flat)[:FINGERPRINT]


def write_adapter(
  path: str | os.PathLike,
  flat: FlatParams,
  *,
  stage: str,
  base: str,
  base_name: str,
  step: int,
) -> None:
  """Writes adapter leaves; they correct by A B as they stand.

  Args:
    path: a .safetensors file.
    flat: leaves under `lora.PREFIX`.
    stage: that it belongs to.
    base: fingerprint of the weights it was trained on.
    base_name: what to call these.
    step: of training.

  Raises:
    UserError: the place cannot be written.
  """
  about = {
    "format": FORMAT,
    "stage": stage,
    "base": base,
    "base_name": base_name,
    "step": str(step),
  }
  safetensors.save(path, flat, about)


def read_adapter(path: str | os.PathLike) -> Adapter:
  """Reads an adapter file, or `adapter.safetensors` of a workdir.

  Raises:
    UserError: it is missing, damaged or no adapter.
  """
  file = Path(path)
  if file.is_dir():
    file = file / "adapter.safetensors"
  about = safetensors.load_metadata(file)
  if about.get("format") != FORMAT:
    raise UserError(
      f"--adapter={path} is no adapter of this program (its format is "
      f"{about.get('format', 'not stated')!r}); give adapter.safetensors of a "
      "run with --config.lora.rank"
    )
  return Adapter(
    path=str(path),
    flat=safetensors.load(file),
    stage=about["stage"],
    base=about["base"],
    base_name=about["base_name"],
  )


def wear(
  adapters: Sequence[Adapter],
  weights: Mapping[str, FlatParams],
  scale: float,
) -> dict[str, FlatParams]:
  """Weights of all stages with adapters merged into those they belong to.

  Args:
    adapters: to merge.
    weights: of each stage there is, as they were trained.
    scale: how much of each; 1 is as trained.

  Raises:
    UserError: a stage is missing, or is not the one that an adapter was
      trained on.
  """
  worn = dict(weights)
  for adapter in adapters:
    check_base(adapter, weights)
    change = lora.scaled(adapter.flat, scale)
    worn[adapter.stage] = lora.merge({**worn[adapter.stage], **change})
  return worn


def check_base(adapter: Adapter, weights: Mapping[str, FlatParams]) -> None:
  """Raises a UserError unless `weights` hold what it was trained on."""
  name = f"--adapter={adapter.path}"
  if adapter.stage not in weights:
    raise UserError(
      f"{name} is for stage {adapter.stage!r}, --model holds "
      f"{', '.join(weights)}; give the model it was trained on"
    )
  base = weights[adapter.stage]
  lora.check_fits(base, adapter.flat, name)
  if (given := fingerprint(base)) != adapter.base:
    raise UserError(
      f"{name} was trained on the {adapter.stage} of {adapter.base_name!r} "
      f"(weights {adapter.base}), and --model holds other weights ({given}); "
      "give the model it was trained on"
    )
