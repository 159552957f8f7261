"""Unseen procedural scenes, and the run of a task on them."""

from collections import defaultdict
from collections.abc import Callable
import dataclasses
from typing import Any

from jaxtyping import Bool
import numpy as np

from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.evals.verdicts import Result, Table, Verdict, scores
from lumiere_jax.inference.pipeline import Pipeline, SampleOptions
from lumiere_jax.inference.settings import Settings
from lumiere_jax.toy_scenes.captions import combinations, describe
from lumiere_jax.toy_scenes.scenes import MOTIONS, Scene, pose, render
from lumiere_jax.typing import Clip

SPLITS = {"unseen": "train", "held_out": "held_out"}
"""Table row -> split: new scenes of trained combinations of colour, shape and
motion, and of combinations that were never trained on."""
DISPLACING = (
  *("left", "right", "up", "down"),
  *("circling", "bouncing", "swinging"),
)
"""Motions that displace an object."""
STAYING = tuple(m for m in MOTIONS if m not in ("left", "right", "up", "down"))
"""Motions that never leave the frame."""
# Training uses small seeds, so these scenes differ from those of training.
_SEED_OFFSET = 1_000_003
_MARGIN = 0.05  # Of the frame, around the path of an object.


def _rows() -> dict[str, list[Verdict]]:
  return defaultdict(list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRun:
  """Draws the scenes of one task and collects its results.

  Attributes:
    pipeline: to score.
    count: scenes per row of the table.
    settings: to sample with.
    seed: of the scenes; scene k is sampled with seed + k.
    on_result: called with every generated video and its verdict.
    generated, real, summary: row -> verdicts on generated videos, on real
      renders of the same scenes, and on several videos together.
  """

  pipeline: Pipeline
  count: int
  settings: Settings
  seed: int
  on_result: Callable[[Result], object] = lambda result: None
  generated: dict[str, list[Verdict]] = dataclasses.field(default_factory=_rows)
  real: dict[str, list[Verdict]] = dataclasses.field(default_factory=_rows)
  summary: dict[str, list[Verdict]] = dataclasses.field(default_factory=_rows)

  def scenes(
    self, *, count: int = 0, two_objects: float = 0.0, **options: Any
  ) -> ProceduralSource:
    """Unseen scenes with the length and resolution of the pipeline's videos.

    Each seed gives other scenes, and none gives those of training. `count` is
    by default that of the run, `two_objects` the share of the scenes with two
    objects, and `options` are those of `ProceduralSource`.
    """
    settings = self.settings
    return ProceduralSource(
      num_clips=count or self.count,
      num_frames=self.pipeline.frames(SampleOptions(settings=settings)),
      resolution=self.pipeline.resolution(settings),
      fps=self.pipeline.fps,
      seed=_SEED_OFFSET + self.seed,
      two_objects=two_objects,
      **options,
    )

  def sampling(self, index: int) -> SampleOptions:
    """Arguments to sample the video of one scene with."""
    return SampleOptions(seed=self.seed + index, settings=self.settings)

  def add(
    self,
    index: int,
    prompt: str,
    video: Clip,
    verdict: Verdict,
    *,
    row: str = "unseen",
    source: Clip | None = None,
  ) -> None:
    """Adds the result of a generated video; see `Result`."""
    self.generated[row].append(verdict)
    self.on_result(
      Result(
        row=row,
        prompt=prompt,
        seed=self.seed + index,
        video=video,
        verdict=verdict,
        source=source,
      )
    )

  def add_real(self, verdict: Verdict, row: str = "unseen") -> None:
    """Adds the verdict on a real render."""
    self.real[row].append(verdict)

  def table(self) -> Table:
    """Scores of all rows, each followed by its real renders, if any."""
    table = {}
    for row, verdicts in self.generated.items():
      table[row] = scores(verdicts)
      if row in self.real:
        table[f"{row}, real renders"] = scores(self.real[row])
    return table | {row: scores(v) for row, v in self.summary.items()}


def another(
  source: ProceduralSource, index: int, *changes: str
) -> tuple[Scene, Clip, str]:
  """A single-object scene with another colour or shape.

  Each of `changes`, 'colour', 'shape' or both, is redrawn such that the
  combination is one of the training split.

  Returns:
    The changed scene, its real render and its caption.
  """
  scene = source.scene(index)
  (sprite,) = scene.sprites
  words = sprite.description
  names = ("colour", "shape", "motion")
  options = [
    other
    for other in combinations("train")
    if {k for k, v in zip(names, other, strict=True) if getattr(words, k) != v}
    == set(changes)
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
  """The bounding box of the path of a scene's single object.

  Returns:
    Its mask, True inside, and its rows and columns.
  """
  (sprite,) = source.scene(index).sprites
  at = pose(sprite, np.arange(source.num_frames) / source.fps)
  mask = np.zeros(np.broadcast_to(source.resolution, 2), bool)
  short = min(mask.shape)
  box = []
  for side, middle in zip(mask.shape, (at.y, at.x), strict=True):
    # Radii are fractions of the shorter side. For objects that grow or shrink
    # this is the largest radius: another object may reach it earlier.
    reach = sprite.radius * short + _MARGIN * side
    low = int(np.floor((middle * side - reach).min()))
    high = int(np.ceil((middle * side + reach).max()))
    box.append(slice(max(low, 0), min(high, side)))
  rows, columns = box
  mask[rows, columns] = True
  return mask, (rows, columns)
