"""Stages and text encoders as parts of our own bundles, in and out."""

from collections.abc import Sequence
from pathlib import Path

from lumiere_jax.conversion.lazy_stage import LazyStage, progress, watched
from lumiere_jax.errors import UserError, option
from lumiere_jax.models import lora
from lumiere_jax.models.text_encoder import TextEncoder, write_text_part
from lumiere_jax.stages.config import StageConfig
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import locked, require_space

_ABOUT = ("step", "trained_on", "licence", "imported_from", "inflated_from")


def read_stages(bundle: bundles.Bundle) -> list[LazyStage]:
  """The stages of a bundle; adapters that it holds are merged.

  Raises:
    UserError: a file is missing or damaged.
  """
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
  """Writes parts into a bundle, which is made or to which they are added.

  A part that the bundle has already is replaced; what it was stays valid
  until all is written.

  Args:
    folder: of the bundle.
    stages: to write.
    text: text encoder to write.
    linked: bundles whose parts are taken as they are: as links, where these
      are possible.

  Raises:
    UserError: the place cannot be written, has too little room, or the parts
      were trained on other text than what it holds.
  """
  with locked(folder):
    parts, about = {}, {"made_by": "lumiere_jax"}
    there: list[bundles.Bundle] = []
    if (folder / bundles.INDEX).is_file():
      there = [bundles.open_bundle(folder, option("out"))]
      parts, about = dict(there[0].parts), dict(there[0].about)
    if text is None:
      bundles.check_same_text([*there, *linked])
    elif there:
      _check_replaceable(there[0], text)
    total = sum(stage.nbytes for stage in stages)
    require_space(folder, total)
    for bundle in reversed(linked):
      for name, part in bundle.parts.items():
        bundles.link_part(bundle, part, folder)
        parts[name] = part
    with progress(total, "weights") as bar:
      for stage in stages:
        file = _unused(folder, stage.name)
        safetensors.save(folder / file, watched(stage.leaves, bar))
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
  """Raises a UserError where stages were trained with another text encoder.

  Imported ones were trained elsewhere, with what is being brought in.
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
      f"{option('out')}={bundle.folder}:",
      f"its {', '.join(trained)} was trained with another text encoder",
      f"give another {option('out')}",
    )


def _unused(folder: Path, stage: str) -> str:
  """A name that no file of the present bundle has."""
  number = 0
  while (folder / (name := f"{stage}-{number:04d}.safetensors")).exists():
    number += 1
  return name
