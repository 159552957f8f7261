"""Converts weights between formats, as `lumiere_jax.convert` asks for it."""

from collections.abc import Sequence
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from lumiere_jax.conversion import diffusers, hub, stablehlo_export
from lumiere_jax.conversion.lazy_stage import (
  LazyStage,
  inflate,
  progress_bar,
  to_float16,
)
from lumiere_jax.errors import UserError, notice, option
from lumiere_jax.inference.adapters import apply_adapters, read_adapter
from lumiere_jax.inference.loading import read_stage
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.models import lora
from lumiere_jax.models.text_encoder import (
  TextEncoder,
  open_text_encoder,
  write_text_part,
)
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import check_writable, locked, require_space
from lumiere_jax.storage.card import write_card
from lumiere_jax.training.averaging import MAX_STD, reconstruct
from lumiere_jax.training.config import Experiment, TextConfig

SOURCES = ("diffusers", "t5", "bundle", "workdir")
TARGETS = ("bundle", "diffusers", "stablehlo", "hub")
_WRITTEN = {
  "diffusers": ("unet", "scheduler"),
  "stablehlo": stablehlo_export.FILES,
}
"""Files and folders in `out`; a bundle is added to."""

_ABOUT = (
  *("step", "ema_std", "trained_on", "licence"),
  *("imported_from", "inflated_from"),
)


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
  """One conversion.

  Attributes:
    temporal: None, or the experiment that the stage is inflated for.
    text: how the text encoder is read; its `weights` are `src`.
    settings: of the sampler in an exported program.
  """

  source: str = setting(
    help=f"One of {', '.join(SOURCES)}.", name="from", choices=SOURCES
  )
  target: str = setting(
    "bundle", f"One of {', '.join(TARGETS)}.", name="to", choices=TARGETS
  )
  src: tuple[str, ...] = setting(
    help="Folder or file to read. Give it again to merge several bundles."
  )
  out: str = setting(
    help="Folder to write; stages are added to a bundle that exists."
  )
  variant: str = setting("", "Variant of diffusers weights, such as fp16.")
  scheduler: str = setting(
    "", "scheduler_config.json of diffusers, if it is not beside the weights."
  )
  stage: str = setting(
    "", "Stage to take, where the source has several. Default: all of them."
  )
  temporal: Experiment | None = None
  adapters: tuple[str, ...] = setting(
    (), "LoRA adapter to merge, as for the sample command.", name="adapter"
  )
  adapter_scale: float = setting(1.0, "Scale of the adapters; 1 is as trained.")
  licence: str = setting(
    "", "Licence of the weights, where the source states none."
  )
  repo: str = setting("", "OWNER/NAME on the Hugging Face hub.")
  upload: bool = setting(
    False, "Upload to the hub; else files are only listed."
  )
  datasets: tuple[str, ...] = setting(
    (),
    "Data set on the hub that the model was trained on, for the model card.",
    name="dataset",
  )
  scores: str = setting(
    "", "JSON file of the evaluate command, for the model card."
  )
  clips: tuple[str, ...] = setting(
    (), "Sample for the model card, as FILE=PROMPT.", name="clip"
  )
  ema_std: float = setting(
    0.0,
    "Length of the average of a run with config.train.ema_stds, as a share of "
    "the training; 0 is its moving average.",
    least=0,
    below=MAX_STD,
  )
  half: bool = setting(
    False, "Write weights in float16: half the size, for sampling only."
  )
  text: TextConfig = dataclasses.field(default_factory=TextConfig)
  settings: Settings = dataclasses.field(default_factory=Settings)
  batch: int = setting(1, "Batch size of an exported program.", least=1)


def convert(job: Conversion) -> None:
  """Converts, and prints what was written."""
  check_values(job)
  for name, value in (("src", job.src), ("out", job.out)):
    if not value:
      raise UserError(option(name), "is missing", "give a folder")
  if job.ema_std and (job.source != "workdir" or job.target == "stablehlo"):
    raise UserError(
      option("ema_std", job.ema_std),
      "needs the snapshots of a training run",
      f"give {option('from', 'workdir')}, and {option('to')} bundle or "
      "diffusers",
    )
  job, publication = _read_publication(job)
  check_writable(job.out, folder=True)
  for name in _WRITTEN.get(job.target, ()):
    if (old := Path(job.out, name)).exists():
      raise UserError(
        f"{old}:",
        "is there already",
        f"give another {option('out')}, or remove it",
      )
  if job.target == "stablehlo":
    lines = _export(job)
  elif job.source == "t5":
    lines = _import_text(job)
  else:
    lines = _convert_stages(job)
  if publication:
    bundle = bundles.open_bundle(job.out, option("out"))
    lines = hub.publish(bundle, publication)
  print(*lines, sep="\n")


def _read_publication(
  job: Conversion,
) -> tuple[Conversion, hub.Publication | None]:
  """The conversion to a bundle, and what the hub gets of that."""
  given = {
    "repo": job.repo,
    "upload": job.upload,
    "dataset": job.datasets,
    "scores": job.scores,
    "clip": job.clips,
  }
  if job.target != "hub":
    for name, value in given.items():
      if value:
        raise UserError(
          option(name), "is for the hub", f"give {option('to', 'hub')} too"
        )
    return job, None
  if not job.repo:
    raise UserError(option("repo"), "is missing", "give OWNER/NAME")
  publication = hub.read(
    job.repo, job.upload, job.licence, job.datasets, job.scores, job.clips
  )
  return dataclasses.replace(job, target="bundle"), publication


def _export(job: Conversion) -> list[str]:
  if job.source not in ("bundle", "workdir"):
    raise UserError(
      option("to", "stablehlo"),
      "takes bundles or workdirs",
      f"convert {option('from', job.source)} to a bundle first",
    )
  pipeline = Pipeline.from_pretrained(
    *job.src, adapters=job.adapters, adapter_scale=job.adapter_scale
  )
  return stablehlo_export.write_artefact(
    pipeline, job.settings, Path(job.out), batch=job.batch
  )


def _import_text(job: Conversion) -> list[str]:
  if len(job.src) > 1 or job.target != "bundle":
    raise UserError(
      option("from", "t5"),
      "does not fit the other options",
      f"give one {option('src')} and {option('to', 'bundle')}",
    )
  text = job.text
  encoder = open_text_encoder(
    text.tokenizer, job.src[0], text.max_length, text.dtype, text.cleaning
  )
  return _summary(add_parts(Path(job.out), text=encoder))


def _convert_stages(job: Conversion) -> list[str]:
  opened = [] if job.source == "diffusers" else _open_bundles(job)
  changed = job.temporal or job.adapters or job.stage or job.half or job.ema_std
  if opened and job.target == "bundle" and not changed:
    return _summary(add_parts(Path(job.out), linked=opened))
  stages = _read_stages(job, opened)
  if job.target == "bundle":
    texts = [_text_only(bundle) for bundle in opened]
    return _summary(add_parts(Path(job.out), stages, linked=texts))
  if len(stages) > 1:
    raise UserError(
      option("to", "diffusers"),
      "writes one stage",
      f"give {option('stage', stages[0].name)} or another of "
      f"{', '.join(stage.name for stage in stages)}",
    )
  return list(map(str, diffusers.write_stage(stages[0], Path(job.out))))


def _open_bundles(job: Conversion) -> list[bundles.Bundle]:
  for src in job.src:
    if job.source == "workdir" and not (Path(src) / "bundle").is_dir():
      raise UserError(
        option("src", src),
        "is not a workdir that has saved a bundle",
        f"give the workdir of a training run, or {option('from', 'bundle')}",
      )
  return [bundles.open_bundle(src, option("src")) for src in job.src]


def _read_stages(
  job: Conversion, opened: list[bundles.Bundle]
) -> list[LazyStage]:
  """The stages of diffusers folders or bundles, selected and modified."""
  if job.source == "diffusers":
    options = {"variant": job.variant, "scheduler": job.scheduler}
    stages = [
      diffusers.read_stage(Path(src), licence=job.licence, **options)
      for src in job.src
    ]
  else:
    stages = []
    for src, bundle in zip(job.src, opened, strict=True):
      for name, part in bundle.parts.items():
        if name != bundles.TEXT:
          config, leaves = read_stage(bundle, name)
          about = {k: part.meta[k] for k in _ABOUT if k in part.meta}
          if job.ema_std:
            average, step, error = reconstruct(Path(src), name, job.ema_std)
            leaves = lora.merge(bundle.leaves(name) | average)
            about |= {"step": step, "ema_std": job.ema_std}
            notice(
              f"{name}: the average of length {job.ema_std:g} at step {step}, "
              f"fitted to {error:.2%}"
            )
          stages.append(
            LazyStage(name=name, config=config, leaves=leaves, about=about)
          )
  names = [stage.name for stage in stages]
  if job.stage:
    stages = [stage for stage in stages if stage.name == job.stage]
  if not stages:
    raise UserError(
      option("src"),
      f"has no stage {job.stage}".rstrip(),
      f"it holds {', '.join(names) or 'a text encoder only'}",
    )
  if job.adapters:
    adapted = apply_adapters(
      [*map(read_adapter, job.adapters)],
      {stage.name: stage.leaves for stage in stages},
      {stage.name: stage.config.model for stage in stages},
      job.adapter_scale,
    )
    stages = [dataclasses.replace(s, leaves=adapted[s.name]) for s in stages]
  if job.temporal:
    stages = [inflate(stage, job.temporal) for stage in stages]
  return [to_float16(stage) for stage in stages] if job.half else stages


def _text_only(bundle: bundles.Bundle) -> bundles.Bundle:
  text = {k: v for k, v in bundle.parts.items() if k == bundles.TEXT}
  return dataclasses.replace(bundle, parts=text)


def _summary(bundle: bundles.Bundle) -> list[str]:
  return [f"{bundle.folder}: {', '.join(bundle.parts)}"]


def add_parts(
  folder: Path,
  stages: Sequence[LazyStage] = (),
  text: TextEncoder | None = None,
  linked: Sequence[bundles.Bundle] = (),
) -> bundles.Bundle:
  """Adds parts to a bundle, or makes a new one.

  A part that the bundle has already is replaced; the old bundle stays valid
  until everything is written. Parts of the `linked` bundles are added
  unchanged, as hard links where that is possible; earlier ones win.
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
        for leaf in bundle.leaves(name).values():
          np.asarray(leaf)  # raises an error where it is not finite
        parts[name] = bundles.link_part(bundle, part, folder)
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
    write_card(bundle)
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
