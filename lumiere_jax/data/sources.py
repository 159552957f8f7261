"""Opens the source that a config names, parted into training and held out."""

import os
import sys

from lumiere_jax.data.files import FilesSource
from lumiere_jax.data.procedural import ProceduralSource
from lumiere_jax.data.source import ClipSpec, Source
from lumiere_jax.typing import UserError, check_choice

KINDS = ("files", "procedural")


def open_sources(
  *,
  kind: str,
  path: str | os.PathLike,
  spec: ClipSpec,
  seed: int,
  num_clips: int,
  two_objects: float,
  held_out: float,
  report: str | os.PathLike | None,
) -> tuple[Source, Source]:
  """The (training, held-out) clips; no clip is in both.

  Args:
    kind: one of `KINDS`.
    path: folder of 'files'.
    spec: the size of the clips.
    seed: of 'procedural'.
    num_clips: training scenes of 'procedural'.
    two_objects: share of 'procedural' scenes with two objects.
    held_out: share of the videos of 'files' that are held out.
    report: where 'files' writes what became of each video.

  Raises:
    UserError: the source is unknown, or nothing in it can be used.
  """
  check_choice("config.data.source", kind, KINDS)
  if kind == "procedural":
    make = lambda split: ProceduralSource(
      num_clips=num_clips,
      seed=seed,
      split=split,
      num_frames=spec.num_frames,
      resolution=spec.resolution,
      fps=spec.fps,
      two_objects=two_objects,
      motion_words=spec.num_frames > 1,
    )
    return make("train"), make("held_out")
  return _open_files(path, spec, held_out, report)


def _open_files(
  path: str | os.PathLike,
  spec: ClipSpec,
  held_out: float,
  report: str | os.PathLike | None,
) -> tuple[Source, Source]:
  if not str(path):
    raise UserError(
      "config.data.path is missing; give a folder of captioned videos with "
      "--config.data.path=DIR, or take --config.data.source=procedural"
    )
  train, rest = FilesSource.open(path, spec, report_path=report).split(held_out)
  if len(rest):
    return train, rest
  print(
    f"{path}: no video can be held out; the held-out loss is taken on videos "
    "that are trained on",
    file=sys.stderr,
  )
  return train, train
