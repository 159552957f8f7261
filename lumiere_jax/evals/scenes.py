"""Scenes that a model trained on the procedural source has never seen."""

import dataclasses

from jaxtyping import Bool
import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings
from lumiere_jax.toy_scenes.captions import Combination, combinations, describe
from lumiere_jax.toy_scenes.scenes import MOTIONS, Scene, pose, render
from lumiere_jax.typing import Clip

SPLITS = {"unseen": "train", "held_out": "held_out"}
"""Row -> split: new scenes of combinations that were trained on, and of those
that never were."""


DISPLACING = (
  *("left", "right", "up", "down"),
  *("circling", "bouncing", "swinging"),
)
"""Motions that take an object elsewhere."""


STAYING = tuple(m for m in MOTIONS if m not in ("left", "right", "up", "down"))
"""Motions that never leave the frame."""


# Seeds of training are small numbers that people think of.
_FAR = 1_000_003


_MARGIN = 0.05  # Of the frame, around the path of an object.


def unseen(
  pipeline: Pipeline,
  count: int,
  settings: Settings,
  seed: int,
  *,
  split: str = "train",
  motions: tuple[str, ...] = tuple(MOTIONS),
  two_objects: float = 0.0,
) -> ProceduralSource:
  """Scenes as long and large as the videos that a pipeline makes.

  Args:
    pipeline: that will be scored.
    count: of the scenes.
    settings: it will sample with.
    seed: another seed gives other scenes; none gives those of training.
    split: of the combinations of colour, shape and motion.
    motions: to draw from.
    two_objects: share of the scenes with two of them.

  Raises:
    UserError: its frame rate is too low for the motions.
  """
  return ProceduralSource(
    num_clips=count,
    num_frames=pipeline.frames(SampleOptions(settings=settings)),
    resolution=pipeline.resolution(settings),
    fps=pipeline.fps,
    seed=_FAR + seed,
    split=split,
    motions=motions,
    two_objects=two_objects,
  )


def another(
  source: ProceduralSource, index: int, *changes: str
) -> tuple[Scene, Clip, str]:
  """The scene of one object with some of its words changed.

  Args:
    source: of the scene.
    index: of the scene.
    changes: 'colour', 'shape' or both: each becomes another one, such that
      the combination is one that was trained on.

  Returns:
    The changed scene, its real render and its caption.
  """
  scene = source.scene(index)
  (sprite,) = scene.sprites
  words = sprite.description
  triple = (words.colour, words.shape, words.motion)
  options = [
    other
    for other in combinations("train")
    if _changed(triple, other) == set(changes)
  ]
  rng = np.random.default_rng((source.seed, index))
  colour, shape, _ = options[rng.integers(len(options))]
  words = dataclasses.replace(words, colour=colour, shape=shape)
  sprite = dataclasses.replace(sprite, description=words)
  scene = dataclasses.replace(scene, sprites=(sprite,))
  real = render(scene, source.num_frames, source.resolution, source.fps)
  return scene, real, describe(scene)


def path_box(
  source: ProceduralSource, index: int
) -> tuple[Bool[np.ndarray, "h w"], tuple[slice, slice]]:
  """A box around the path of the one object of a scene.

  Returns:
    The mask of it, True inside, and its rows and columns.
  """
  (sprite,) = source.scene(index).sprites
  at = pose(sprite, np.arange(source.num_frames) / source.fps)
  mask = np.zeros(np.broadcast_to(source.resolution, 2), bool)
  short = min(mask.shape)
  box = []
  for side, middle in zip(mask.shape, (at.y, at.x), strict=True):
    # Radii are fractions of the shorter side. Of what grows or shrinks it is
    # the largest one: another object may be so large sooner.
    reach = sprite.radius * short + _MARGIN * side
    low = int(np.floor((middle * side - reach).min()))
    high = int(np.ceil((middle * side + reach).max()))
    box.append(slice(max(low, 0), min(high, side)))
  mask[tuple(box)] = True
  return mask, tuple(box)


def _changed(triple: Combination, other: Combination) -> set[str]:
  names = ("colour", "shape", "motion")
  pairs = zip(names, triple, other, strict=True)
  return {name for name, old, new in pairs if old != new}
