"""The table of data sources, and how a config opens one.

To add a data source, write a function that opens it for training and for
held-out evaluation, and add it to `SOURCES`.
"""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import sys
from typing import Any

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.filters import FRAME_FILTERS
from lumiere_jax.data.sources.base import ClipSpec, Source
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.mixture import MixtureSource
from lumiere_jax.data.sources.prepared import is_prepared, open_prepared
from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.data.sources.tfds import open_tfds
from lumiere_jax.data.text_features import TextShards
from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.storage.atomic import AnyPath
from lumiere_jax.storage.remote import Folder

Sources = tuple[Source, Source]
"""The training clips and the held-out clips."""


def _procedural(config: DataConfig, seed: int, _) -> Sources:
  if config.buckets:
    raise UserError(
      f"config.data.buckets={config.buckets!r}:",
      "scenes of 'procedural' have one shape",
      "leave buckets out, or choose another config.data.source",
    )
  train = ProceduralSource(
    num_clips=config.num_clips,
    seed=seed,
    num_frames=config.num_frames,
    resolution=config.resolution,
    fps=config.fps,
    two_objects=config.two_objects,
    moments=config.moments,
  )
  return train, dataclasses.replace(train, split="held_out")


def _files(config: DataConfig, _: int, report) -> Sources:
  _require_path(config, "a folder of captioned videos")
  source = _open_files(config, config.path, config.specs, report)
  return _hold_out(source, config)


def _prepared(config: DataConfig, _: int, report) -> Sources:
  _require_path(config, "a folder that lumiere_jax.prepare made")
  if config.prompts:
    raise UserError(
      "config.data.prompts",
      "is for folders of videos, not for source=prepared",
      "leave it out, and give it to lumiere_jax.prepare",
    )
  source = open_prepared(config.path, config.specs, **_common(config, report))
  return _hold_out(source, config)


def _tfds(config: DataConfig, _: int, report) -> Sources:
  _require_path(config, "the name of a builder, such as ucf101/ucf101_1,")
  for name in FRAME_FILTERS:
    if getattr(config, name):
      print(
        f"data: config.data.{name}={getattr(config, name):g} has no effect: "
        "source=tfds uses whole videos",
        file=sys.stderr,
      )
  source = open_tfds(
    config.path,
    config.specs,
    data_dir=config.tfds_dir,
    prompts=config.prompts,
    num_threads=config.threads,
    **_common(config, report),
  )
  return _hold_out(source, config)


SOURCES: dict[str, Callable[[DataConfig, int, object], Sources]] = {
  "files": _files,
  "prepared": _prepared,
  "procedural": _procedural,
  "tfds": _tfds,
}
"""Value of config.data.source -> function (config, seed, report path)."""


def open_sources(
  config: DataConfig, *, seed: int, report: AnyPath | None
) -> Sources:
  """Opens the training and the held-out clips, which are disjoint.

  Args:
    config: the data source.
    seed: of 'procedural'.
    report: path of the data report; that of pictures mixed in is beside it,
      with _images in its name. None: no reports.
  """
  check_choice("config.data.source", config.source, SOURCES)
  train, held_out = SOURCES[config.source](config, seed, report)
  if config.images:
    images = _open_images(config, report)
    train = MixtureSource(train, images, config.image_share)
  return train, held_out


def open_text_shards(config: DataConfig) -> tuple[TextShards, ...]:
  """Text features that were prepared together with the clips."""
  folders = [config.path] if config.source == "prepared" else []
  if config.images and is_prepared(config.images):
    folders.append(config.images)
  return tuple(TextShards(Folder(path, config.cache)) for path in folders)


def _require_path(config: DataConfig, what: str) -> None:
  if not config.path:
    raise UserError(
      "config.data.path",
      "is missing",
      f"give {what} with {option('config.data.path')}=DIR, or choose "
      f"{option('config.data.source')}=procedural",
    )


def _hold_out(source: FilesSource, config: DataConfig) -> Sources:
  train, held_out = source.split(config.held_out)
  if not len(held_out):
    print(
      f"{config.path}: no video can be held out; the held-out loss uses "
      "training videos",
      file=sys.stderr,
    )
    held_out = train
  return train, held_out


def _open_images(config: DataConfig, report) -> FilesSource:
  """Pictures of each size of the config's clips."""
  specs = [dataclasses.replace(spec, num_frames=1) for spec in config.specs]
  specs = list(dict.fromkeys(specs))
  if report:
    report = Path(report).with_stem(f"{Path(report).stem}_images")
  config = dataclasses.replace(config, scene_cuts=0.0, min_motion=0.0)
  if is_prepared(config.images):
    return open_prepared(config.images, specs, **_common(config, report))
  return _open_files(config, config.images, specs, report)


def _open_files(
  config: DataConfig, path: str, specs: Sequence[ClipSpec], report
) -> FilesSource:
  return FilesSource.open(
    path,
    specs,
    num_threads=config.threads,
    prompts=config.prompts,
    **_common(config, report),
  )


def _common(config: DataConfig, report) -> dict[str, Any]:
  """Arguments of all functions that open folders or data sets."""
  return {
    "filters": config.filters,
    "report_path": report,
    "cache": config.cache,
  }
