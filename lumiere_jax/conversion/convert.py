"""What `convert` is asked for, checked and done."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from lumiere_jax.conversion import diffusers
from lumiere_jax.conversion.bundles import add_parts, read_stages
from lumiere_jax.conversion.lazy_stage import LazyStage, halved, inflated
from lumiere_jax.conversion.stablehlo_export import write_artefact
from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.inference.adapters import apply_adapters, read_adapter
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.models.text_encoder import open_text_encoder
from lumiere_jax.options import documented, setting
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.training.config import Experiment, TextConfig

SOURCES = ("diffusers", "t5", "bundle", "workdir")


TARGETS = ("bundle", "diffusers", "stablehlo")


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
  """One conversion.

  Attributes:
    temporal: None, or the experiment that the stage is inflated for.
    text: how the text encoder is read; its `weights` are `src`.
    settings: of the sampler in an exported program.
  """

  source: str = setting(help=f"One of {', '.join(SOURCES)}.", name="from")
  target: str = setting("bundle", f"One of {', '.join(TARGETS)}.", name="to")
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
    (),
    "LoRA adapter to merge, as for the sample command.",
    name="adapter",
  )
  adapter_scale: float = setting(1.0, "Scale of the adapters; 1 is as trained.")
  licence: str = setting(
    "", "Licence of the weights, where the source states none."
  )
  half: bool = setting(
    False, "Write weights in float16: half the size, for sampling only."
  )
  text: TextConfig = dataclasses.field(default_factory=TextConfig)
  settings: Settings = dataclasses.field(default_factory=Settings)
  batch: int = setting(1, "Batch size of an exported program.")


def convert(job: Conversion) -> None:
  """Converts, and says what was written.

  Raises:
    UserError: something in it cannot be used; nothing is left half-written.
  """
  check_choice(option("from"), job.source, SOURCES)
  check_choice(option("to"), job.target, TARGETS)
  for name, value in (("src", job.src), ("out", job.out)):
    if not value:
      raise UserError(option(name), "is missing", "give a folder")
  if job.target == "stablehlo":
    _export(job)
  elif job.source == "t5":
    _import_text(job)
  else:
    _carry(job)


def _export(job: Conversion) -> None:
  if job.source not in ("bundle", "workdir"):
    raise UserError(
      f"{option('to')}=stablehlo",
      "takes bundles or workdirs",
      f"convert {option('from')}={job.source} to a bundle first",
    )
  pipeline = Pipeline.from_pretrained(
    *job.src, adapters=job.adapters, adapter_scale=job.adapter_scale
  )
  for line in write_artefact(
    pipeline, job.settings, Path(job.out), batch=job.batch
  ):
    print(line)


def _import_text(job: Conversion) -> None:
  if len(job.src) > 1 or job.target != "bundle":
    raise UserError(
      f"{option('from')}=t5",
      f"takes one {option('src')} and makes a bundle of it",
    )
  text = job.text
  encoder = open_text_encoder(
    text.tokenizer, job.src[0], text.max_length, text.dtype, text.cleaning
  )
  bundle = add_parts(Path(job.out), text=encoder)
  print(f"{bundle.folder}: {', '.join(bundle.parts)}")


def _carry(job: Conversion) -> None:
  opened = [] if job.source == "diffusers" else _open(job)
  if opened and job.target == "bundle" and not _changes(job):
    bundle = add_parts(Path(job.out), linked=opened)
    print(f"{bundle.folder}: {', '.join(bundle.parts)}")
    return
  stages = _chosen(job, _read(job, opened))
  if job.adapters:
    stages = _adapted(job, stages)
  if job.temporal:
    stages = [inflated(stage, job.temporal) for stage in stages]
  if job.half:
    stages = [halved(stage) for stage in stages]
  if job.target == "diffusers":
    if len(stages) > 1:
      raise UserError(
        f"{option('to')}=diffusers",
        "writes one stage",
        f"say {option('stage')}={stages[0].name} or another of "
        f"{', '.join(stage.name for stage in stages)}",
      )
    for path in diffusers.write_stage(stages[0], Path(job.out)):
      print(path)
    return
  bundle = add_parts(Path(job.out), stages, linked=_texts_alone(opened))
  print(f"{bundle.folder}: {', '.join(bundle.parts)}")


def _open(job: Conversion) -> list[bundles.Bundle]:
  opened = []
  for src in job.src:
    if job.source == "workdir" and not (Path(src) / "bundle").is_dir():
      raise UserError(
        option("src", src),
        "is no workdir that has saved a bundle",
        f"give the workdir of a training run, or {option('from')}=bundle",
      )
    opened.append(bundles.open_bundle(src, option("src")))
  return opened


def _changes(job: Conversion) -> bool:
  """Whether weights differ from the source's, or not all are wanted."""
  return bool(job.temporal or job.adapters or job.stage or job.half)


def _read(job: Conversion, opened: list[bundles.Bundle]) -> list[LazyStage]:
  if job.source != "diffusers":
    return [stage for bundle in opened for stage in read_stages(bundle)]
  return [
    diffusers.read_stage(
      Path(src),
      variant=job.variant,
      scheduler=job.scheduler,
      licence=job.licence,
    )
    for src in job.src
  ]


def _chosen(job: Conversion, stages: list[LazyStage]) -> list[LazyStage]:
  names = [stage.name for stage in stages]
  if job.stage:
    stages = [stage for stage in stages if stage.name == job.stage]
  if not stages:
    raise UserError(
      f"{option('stage')}={job.stage}:",
      f"{option('src')} holds {', '.join(names) or 'no stage'}",
    )
  return stages


def _adapted(job: Conversion, stages: Sequence[LazyStage]) -> list[LazyStage]:
  """The stages with adapters merged into those they belong to."""
  worn = apply_adapters(
    [*map(read_adapter, job.adapters)],
    {stage.name: stage.leaves for stage in stages},
    {stage.name: stage.config.model for stage in stages},
    job.adapter_scale,
  )
  return [dataclasses.replace(s, leaves=worn[s.name]) for s in stages]


def _texts_alone(opened: list[bundles.Bundle]) -> list[bundles.Bundle]:
  """The bundles without their stages."""
  keep = lambda parts: {k: v for k, v in parts.items() if k == bundles.TEXT}
  return [dataclasses.replace(b, parts=keep(b.parts)) for b in opened]
