"""Reads stages from bundles, and adds stages and text encoders to bundles."""

from collections.abc import Sequence
import itertools
from pathlib import Path

from lumiere_jax.conversion.lazy_stage import LazyStage, progress_bar
from lumiere_jax.errors import UserError, option
from lumiere_jax.models import lora
from lumiere_jax.models.text_encoder import TextEncoder, write_text_part
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import locked, require_space

_ABOUT = ("step", "trained_on", "licence", "imported_from", "inflated_from")


def read_stages(bundle: bundles.Bundle) -> list[LazyStage]:
  """The stages of a bundle, with its adapters merged into their weights."""
  stages = []
  for name, part in bundle.parts.items():
    if name == bundles.TEXT:
      continue
    where = f"{bundle.folder}: parts.{name}.meta"
    stages.append(
      LazyStage(
        name=name,
        config=StageConfig.from_meta(part.meta, where),
        leaves=lora.merge(bundle.leaves(name)),
        about={k: part.meta[k] for k in _ABOUT if k in part.meta},
      )
    )
  return stages


def add_parts(
  folder: Path,
  stages: Sequence[LazyStage] = (),
  text: TextEncoder | None = None,
  linked: Sequence[bundles.Bundle] = (),
) -> bundles.Bundle:
  """Adds parts to a bundle, or makes a new one.

  A part that the bundle has already is replaced; the old bundle stays valid
  until everything is written.

  Args:
    folder: of the bundle.
    stages: to write.
    text: text encoder to write.
    linked: bundles whose parts are added unchanged, as hard links where that is
      possible; earlier ones win.
  """
  with locked(folder):
    parts, about = {}, {"made_by": "lumiere_jax"}
    old: list[bundles.Bundle] = []
    if (folder / bundles.INDEX).is_file():
      old = [bundles.open_bundle(folder, option("out"))]
      parts, about = dict(old[0].parts), dict(old[0].about)
    if text is None:
      bundles.check_same_text([*old, *linked])
    elif old:
      _check_replaceable(old[0], text)
    total = sum(stage.nbytes for stage in stages)
    require_space(folder, total)
    for bundle in reversed(linked):
      for name, part in bundle.parts.items():
        bundles.link_part(bundle, part, folder)
        parts[name] = part
    with progress_bar(total, "weights") as counted:
      for stage in stages:
        file = _unused(folder, stage.name)
        safetensors.save(folder / file, counted(stage.leaves))
        parts[stage.name] = bundles.Part(
          meta={**stage.config.to_meta(), **stage.about}, tensors=(file,)
        )
    if text:
      parts[bundles.TEXT] = write_text_part(folder, text)
    bundles.write(folder, parts, about)
    bundle = bundles.open_bundle(folder, option("out"))
    bundles.write_card(bundle)
  return bundle


def _check_replaceable(bundle: bundles.Bundle, text: TextEncoder) -> None:
  """Raises a UserError if stages were trained with another text encoder.

  Imported stages may get theirs in a later conversion.
  """
  present = bundle.parts.get(bundles.TEXT)
  if not present or present.meta.get("identity") == text.identity:
    return
  trained = [
    name
    for name, part in bundle.parts.items()
    if name != bundles.TEXT and "imported_from" not in part.meta
  ]
  if trained:
    raise UserError(
      option("out", f"{bundle.folder}:"),
      f"its {', '.join(trained)} was trained with another text encoder",
      f"give another {option('out')}",
    )


def _unused(folder: Path, stage: str) -> str:
  """A file name that is not in use in the folder."""
  names = (f"{stage}-{k:04d}.safetensors" for k in itertools.count())
  return next(name for name in names if not (folder / name).exists())
