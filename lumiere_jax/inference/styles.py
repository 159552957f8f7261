"""Stylised generation (Lumiere, section 4.1).

A video model shares its spatial layers with the image model it was inflated
from. A style is a fine-tuned image model, or a LoRA adapter of one. It is
interpolated with the spatial weights, W = alpha W_style + (1 - alpha) W_orig;
temporal weights do not change.
"""

from collections.abc import Mapping
import dataclasses
from importlib import resources
import os
from pathlib import Path
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from lumiere_jax.errors import UserError, format_message, option
from lumiere_jax.inference.adapters import (
  Adapter,
  PublishedAdapter,
  fingerprint,
  is_adapter,
  read_adapter,
  split_stage,
)
from lumiere_jax.models import lora
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers import lora_diffusers
from lumiere_jax.models.importers.hf_checkpoint import refuse_pickle
from lumiere_jax.models.params import check_same_leaves, is_spatial
from lumiere_jax.stages.config import FAMILIES, IMAGE_STAGES, SLOT_OF
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

MOST = 1.5
"""The largest alpha; above 1 a style is exaggerated."""

_OPTION = option("style")
_SHIPPED = Path(str(resources.files("lumiere_jax"))) / "assets" / "styles"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """A style.

  Attributes:
    path: as the user gave it.
    slot: 'base' or 'ssr'; '' is the one that a published adapter fits.
    leaves: spatial leaves of the style, lazy; {} for an adapter.
    adapter: the spatial part of an adapter, in place of leaves.
  """

  path: str
  slot: str
  leaves: FlatParams = dataclasses.field(default_factory=dict)
  adapter: Adapter | PublishedAdapter | None = None

  @property
  def name(self) -> str:
    """Its name in errors."""
    return f"{_OPTION}={self.path}"


def read_style(path: str | os.PathLike) -> Style:
  """Reads a style: a fine-tuned model or a LoRA adapter.

  Args:
    path: a bundle or workdir of a fine-tuned 't2i' or 'ssr_image', or of a
      stage inflated from one, whose spatial leaves are taken; or an adapter as
      in `read_adapter`. STAGE=PATH names the stage of a bundle to take, or the
      one an adapter is for. 'pastel' is included in the package, for the bundle
      'demo'.
  """
  place, stage = split_stage(path)
  shipped = _SHIPPED / f"{place}.safetensors"
  if not place.exists() and shipped.is_file():
    place = shipped
  if stage and stage not in SLOT_OF:
    raise UserError(
      f"{_OPTION}={path}:",
      f"there is no stage {stage!r}",
      f"name one of {', '.join(SLOT_OF)}",
    )
  if place.is_dir() and not bundles.is_bundle(place):
    refuse_pickle(*sorted(place.iterdir()))
  if is_adapter(place):
    return _of_adapter(str(path), read_adapter(place, _OPTION), stage)
  return _of_bundle(str(path), bundles.open_bundle(place, _OPTION), stage)


def check_alpha(alpha: float, name: str = option("alpha")) -> None:
  """Checks that alpha is in [0, `MOST`]; warns above 1.

  Args:
    alpha: 0 is the original model, 1 the style.
    name: the option it came from, for errors.
  """
  if not 0 <= alpha <= MOST:  # a NaN too
    problem = f"is not in [0, {MOST:g}]"
    fix = "0 is the original model, 1 the style"
    raise UserError(f"{name}={alpha:g}", problem, fix)
  if alpha > 1:
    _warn(
      f"{name}={alpha:g} is above 1: it goes beyond the style, and pictures "
      "may break down"
    )


def parse_alphas(text: str, name: str = option("alphas")) -> tuple[float, ...]:
  """'0,0.5,1' as numbers, each checked by `check_alpha`."""
  try:
    alphas = tuple(map(float, text.split(",")))
  except ValueError as error:
    raise UserError(
      f"{name}={text!r}",
      "is not a list of numbers",
      "separate them by commas, such as 0,0.5,1",
    ) from error
  for alpha in alphas:
    check_alpha(alpha, name)
  return alphas


def spatial(flat: FlatParams) -> FlatParams:
  """The leaves that an image model has too."""
  return {k: v for k, v in flat.items() if is_spatial(k)}


def interpolate_style(
  original: FlatParams, style: FlatParams, alpha: float, name: str = _OPTION
) -> FlatParams:
  """alpha style + (1 - alpha) original, of spatial leaves (section 4.1).

  Sums are in float32 and rounded once, to the original's dtype. At 0 and 1 the
  result is exact. Leaves that inflation added stay the original's.

  Args:
    original: of any stage; numpy, jax or lazy. Lazy leaves stay lazy.
    style: of a stage with the same spatial leaves; numpy, jax or lazy.
    alpha: weight of the style; above 1 extrapolates.
    name: the style's name in errors.
  """
  style = spatial(style)
  check_same_leaves(style, spatial(original), name)
  if not alpha:
    return dict(original)
  return {
    path: _blend(leaf, style[path], alpha) if path in style else leaf
    for path, leaf in original.items()
  }


def styled(
  weights: Mapping[str, FlatParams],
  models: Mapping[str, UNetConfig],
  style: Style,
  alpha: float,
) -> dict[str, FlatParams]:
  """Weights of all stages, with a style in those that it fits.

  An adapter adds alpha A B, which is the same interpolation: W_style = W + A B.
  If it was trained on other weights of the same shapes, this warns.

  `weights` are those of each stage without adapters, and `models` the configs
  of their networks.
  """
  check_alpha(alpha)
  family = FAMILIES.get(style.slot, tuple(SLOT_OF))
  stages = [name for name in family if name in weights]
  if not stages:
    raise UserError(
      style.name,
      f"is for {' or '.join(family)}, {option('model')} holds "
      f"{', '.join(weights)}",
      "give the model that it is a style of",
    )
  changed: dict[str, FlatParams] = {}
  misfits: dict[str, UserError] = {}
  for stage in stages:
    try:
      changed[stage] = _in_style(
        weights[stage], models[stage], stage, style, alpha
      )
    except UserError as misfit:
      misfits[stage] = misfit
  slots = {SLOT_OF[stage] for stage in changed}
  if not changed:
    raise UserError("; ".join(dict.fromkeys(map(str, misfits.values()))))
  if len(slots) > 1:
    raise UserError(
      style.name,
      f"fits the stages {', '.join(changed)}",
      f"say which, as {_OPTION}={next(iter(changed))}={style.path}",
    )
  for stage, error in misfits.items():
    if SLOT_OF[stage] in slots:
      _warn(f"{stage} keeps its own style: {error}")
  return {**weights, **changed}


def _of_adapter(
  path: str, adapter: Adapter | PublishedAdapter, stage: str
) -> Style:
  """The spatial part of an adapter."""
  if isinstance(adapter, PublishedAdapter):
    return Style(path=path, slot=SLOT_OF.get(stage, ""), adapter=adapter)
  slot = SLOT_OF[adapter.stage]
  if stage and SLOT_OF[stage] != slot:
    raise UserError(
      f"{_OPTION}={path}",
      f"was trained for stage {adapter.stage!r}",
      f"give it as {adapter.path}",
    )
  flat = spatial(adapter.flat)
  if not flat:
    raise UserError(
      f"{_OPTION}={path}",
      "adapts no spatial layers",
      "train one with config.lora.target=spatial, or give it as "
      f"{option('adapter')}",
    )
  return Style(
    path=path, slot=slot, adapter=dataclasses.replace(adapter, flat=flat)
  )


def _of_bundle(path: str, bundle: bundles.Bundle, stage: str) -> Style:
  """The spatial leaves of the named stage, or of the only slot."""
  held = [name for name in SLOT_OF if name in bundle.parts]
  found = [name for name in held if stage in ("", name)]
  if not found:
    raise UserError(
      f"{_OPTION}={path}",
      f"holds {', '.join(held) or 'no stage'}",
      f"give a fine-tuned {stage or ' or '.join(IMAGE_STAGES)}",
    )
  if len({SLOT_OF[name] for name in found}) > 1:
    raise UserError(
      f"{_OPTION}={path}",
      f"holds {', '.join(found)}",
      f"name the stage to take, as {_OPTION}={found[0]}={path}",
    )
  leaves = spatial(lora.merge(bundle.leaves(found[0])))
  return Style(path=path, slot=SLOT_OF[found[0]], leaves=leaves)


def _in_style(
  flat: FlatParams, model: UNetConfig, stage: str, style: Style, alpha: float
) -> FlatParams:
  """One stage in a style; a UserError if the style does not fit."""
  adapter = style.adapter
  if adapter is None:
    return interpolate_style(flat, style.leaves, alpha, style.name)
  if isinstance(adapter, PublishedAdapter):
    change = lora_diffusers.from_diffusers(
      adapter.layers, model, f"{style.name} on stage {stage!r}"
    )
  else:
    change = adapter.flat
    lora.check_fits(flat, change, style.name)
    # A base keeps the spatial leaves of the image model it was inflated from.
    known = spatial(flat) if adapter.stage in IMAGE_STAGES else flat
    if fingerprint(known) != adapter.base:
      _warn(
        f"{style.name} was trained on the {adapter.stage} of "
        f"{adapter.base_name!r}, and the {stage} of {option('model')} holds "
        "other weights of the same shapes: the style may look different"
      )
  if not alpha:  # W + 0 is W, but for the sign of zeros
    return dict(flat)
  return lora.merge({**flat, **lora.scaled(change, alpha)})


def _warn(text: str) -> None:
  """Warns, with options named as the front end does."""
  warnings.warn(format_message(text), stacklevel=3)


def _blend(original: Any, style: Any, alpha: float) -> Any:
  """One leaf."""
  if isinstance(original, LazyArray):
    make = lambda: _blend(original.make(), style, alpha)
    return LazyArray(original.shape, original.dtype, make)
  # Leaves on devices stay there; all others are numpy.
  array = jnp if isinstance(original, jax.Array) else np
  kept = isinstance(style, jax.Array) and array is jnp
  style = style if kept else np.asarray(style)
  if alpha != 1:
    before, after = (x.astype(np.float32) for x in (original, style))
    style = alpha * after + (1 - alpha) * before
  return array.asarray(style, original.dtype)
