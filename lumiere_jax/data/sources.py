"""Opens the source that a config names, parted into training and held out."""

from collections.abc import Callable
import os
import sys

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.files import FilesSource
from lumiere_jax.data.procedural import ProceduralSource
from lumiere_jax.data.source import Source
from lumiere_jax.typing import UserError, check_choice

Sources = tuple[Source, Source]


def open_sources(
  config: DataConfig, *, seed: int, report: str | os.PathLike | None
) -> Sources:
  """The (training, held-out) clips; no clip is in both.

  Args:
    config: what to open.
    seed: of 'procedural'.
    report: where to write what became of each video.

  Raises:
    UserError: the source is unknown, or nothing in it can be used.
  """
  check_choice("config.data.source", config.source, KINDS)
  return KINDS[config.source](config, seed, report)


def _procedural(config: DataConfig, seed: int, report) -> Sources:
  del report  # nothing is ever dropped
  train, held_out = (
    ProceduralSource(
      num_clips=config.num_clips,
      seed=seed,
      split=split,
      num_frames=config.num_frames,
      resolution=config.size,
      fps=config.fps,
      two_objects=config.two_objects,
      motion_words=config.num_frames > 1,
    )
    for split in ("train", "held_out")
  )
  return train, held_out


def _files(config: DataConfig, seed: int, report) -> Sources:
  del seed
  if not config.path:
    raise UserError(
      "config.data.path is missing; give a folder of captioned videos with "
      "--config.data.path=DIR, or take --config.data.source=procedural"
    )
  source = FilesSource.open(config.path, config.specs[0], report_path=report)
  return _hold_out(source, config)


def _hold_out(source: FilesSource, config: DataConfig) -> Sources:
  train, rest = source.split(config.held_out)
  if len(rest):
    return train, rest
  print(
    f"{config.path}: no video can be held out; the held-out loss is taken on "
    "videos that are trained on",
    file=sys.stderr,
  )
  return train, train


KINDS: dict[str, Callable[[DataConfig, int, object], Sources]] = {
  "files": _files,
  "procedural": _procedural,
}
