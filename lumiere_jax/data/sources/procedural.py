"""The `procedural` source: captioned toy scenes drawn from a seed.

Each scene has one or two coloured shapes that move in front of a plain
background (see `toy_scenes`). A clip is a pure function of seed, split, index
and size.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import TypeVar

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.data.sources.base import Group
from lumiere_jax.errors import UserError, suggest
from lumiere_jax.toy_scenes.captions import (
  CROSSING,
  Combination,
  combinations,
  describe,
  staying_in_half,
)
from lumiere_jax.toy_scenes.scenes import (
  BACKGROUNDS,
  COLOURS,
  MOTIONS,
  SHAPES,
  SIZES,
  Description,
  Scene,
  Sprite,
  render,
)

T = TypeVar("T")
_MARGIN = 0.03  # Of the frame, around shapes that do not cross it.
_SPLITS = ("train", "held_out")
_MOMENTS = 2  # Seed of the choice of moments, apart from those of the splits.
_MAX_SECONDS = 5.0  # Moments are drawn up to this time.
_FIELD = "procedural source: "

_NAMES: dict[str, Mapping] = {
  "colours": COLOURS,
  "shapes": SHAPES,
  "motions": MOTIONS,
  "backgrounds": BACKGROUNDS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProceduralSource:
  """Captioned clips of toy scenes.

  Attributes:
    num_frames: of a clip; 1 makes images.
    resolution: (height, width) in pixels, or the side of a square.
    seed: another seed gives another data set of the same kind.
    split: "train", or "held_out": triples of (colour, shape, motion) that
      "train" never shows (see `is_held_out`).
    two_objects: fraction of scenes with two sprites.
    moments: fraction of images that show a random moment of the motion and
      name it in the caption. The others show the start of the motion and leave
      it out of the caption.
    colours, shapes, motions, backgrounds: names to draw from.
  """

  num_clips: int
  num_frames: int
  resolution: int | tuple[int, int]
  fps: float = 16.0
  seed: int = 0
  split: str = "train"
  two_objects: float = 0.25
  moments: float = 0.0
  colours: tuple[str, ...] = tuple(COLOURS)
  shapes: tuple[str, ...] = tuple(SHAPES)
  motions: tuple[str, ...] = tuple(MOTIONS)
  backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)

  def __post_init__(self):
    names = {f: getattr(self, f) for f in _NAMES} | {"split": (self.split,)}
    for field, known in {**_NAMES, "split": _SPLITS}.items():
      listed = f"choose from {', '.join(known)}"
      if not names[field]:
        raise UserError(_FIELD + field, "is empty", listed)
      for name in names[field]:
        if name not in known:
          problem = f"has no {name!r}{suggest(name, known)}"
          raise UserError(_FIELD + field, problem, listed)
    rates = (MOTIONS[m].rates.values() for m in self.motions)
    fastest = max(high for _, high in itertools.chain(*rates))
    least = 2 * fastest if self.num_frames > 1 else 0
    aliasing = f"above {least:g}, or leave out the fastest motions, which alias"
    enough = not self.two_objects or self._axes
    for field, holds, fix in (
      ("num_clips", self.num_clips >= 1, "1 or more"),
      ("num_frames", self.num_frames >= 1, "1 or more"),
      ("resolution", np.min(self.resolution) >= 8, "8 or more"),
      ("seed", self.seed >= 0, "0 or more"),
      ("two_objects", 0 <= self.two_objects <= 1, "in [0, 1]"),
      ("moments", 0 <= self.moments <= 1, "in [0, 1]"),
      ("fps", self.fps > least, aliasing),
      ("split", self._combinations, "the other one, or give more names"),
      ("two_objects", enough, "0, or give more names"),
    ):
      if not holds:
        problem = f"is {getattr(self, field)!r}"
        raise UserError(_FIELD + field, problem, f"make it {fix}")

  @property
  def _combinations(self) -> tuple[Combination, ...]:
    return combinations(self.split, self.colours, self.shapes, self.motions)

  @property
  def _axes(self) -> list[int]:
    """Axes along which two sprites of different colours can be placed."""
    colours = lambda axis: {
      t[0] for t in staying_in_half(self._combinations, axis)
    }
    return [axis for axis in CROSSING if len(colours(axis)) > 1]

  def __len__(self) -> int:
    return self.num_clips

  def scene(self, index: int) -> Scene:
    """The scene of clip `index`, which is the same at every size and length."""
    if not 0 <= index < self.num_clips:
      raise IndexError(f"clip {index} of {self.num_clips}")
    rng = np.random.default_rng((self.seed, _SPLITS.index(self.split), index))
    background = _choose(rng, self.backgrounds)
    if rng.random() < self.two_objects:
      return Scene(sprites=self._two_sprites(rng), background=background)
    everywhere = np.array([[0.0, 0.0], [1.0, 1.0]])
    sprite = _place(rng, _choose(rng, self._combinations), everywhere)
    return Scene(sprites=(sprite,), background=background)

  def _two_sprites(self, rng: np.random.Generator) -> tuple[Sprite, Sprite]:
    """Two sprites, each in its half of the frame, so they never overlap."""
    axis = _choose(rng, self._axes)
    triples = staying_in_half(self._combinations, axis)
    first = _choose(rng, triples)
    second = _choose(rng, [t for t in triples if t[0] != first[0]])
    near, far = np.array([[[0.0, 0.0], [1.0, 1.0]]] * 2)
    near[1, axis] = far[0, axis] = 0.5
    return _place(rng, first, near), _place(rng, second, far)

  @property
  def groups(self) -> tuple[Group, ...]:
    return (Group(indices=range(len(self))),)

  def captions(self, index: int) -> tuple[str, ...]:
    return (self.caption(index),)

  def caption(self, index: int) -> str:
    """The caption of clip `index`; `parse_caption` is its inverse."""
    return describe(self.scene(index), self._names_motion(index))

  def _names_motion(self, index: int) -> bool:
    """Whether the caption has the motion; always for more than one frame."""
    if self.num_frames > 1:
      return True
    rng = np.random.default_rng((self.seed, _MOMENTS, index))
    return rng.random() < self.moments

  def clip(
    self, index: int, rng: np.random.Generator | None = None
  ) -> UInt8[np.ndarray, "t h w 3"]:
    """Draws clip `index`.

    Args:
      rng: draws where on its path each sprite starts, which captions leave
        open; None: as in `scene(index)`.
    """
    scene = self.drawn_scene(index, rng)
    return render(scene, self.num_frames, self.resolution, self.fps)

  def drawn_scene(self, index: int, rng: np.random.Generator | None) -> Scene:
    """The scene that `clip` draws for the same arguments."""
    scene = self.scene(index)
    if rng is not None:
      sprites = [_draw_phase(rng, s) for s in scene.sprites]
      if self.num_frames == 1 and self._names_motion(index):
        seconds = rng.uniform(0, _MAX_SECONDS)
        sprites = [
          dataclasses.replace(s, phase=s.phase + s.rate * seconds)
          for s in sprites
        ]
      scene = dataclasses.replace(scene, sprites=tuple(sprites))
    return scene


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
  return options[int(rng.integers(len(options)))]


def _place(
  rng: np.random.Generator, triple: Combination, cell: np.ndarray
) -> Sprite:
  """A sprite whose whole path lies in `cell` = ((x0, y0), (x1, y1))."""
  colour, shape, name = triple
  motion = MOTIONS[name]
  # Sprites that grow or shrink have no size word.
  changes = name in ("growing", "shrinking")
  size = None if changes else _choose(rng, tuple(SIZES))
  speed = _choose(rng, tuple(motion.rates))
  radius = SIZES[size or "large"]
  room = (cell[1] - cell[0]) / 2 - radius - _MARGIN
  reach = np.minimum(motion.reach, room)
  spare = room - reach
  centre = cell.mean(0) + rng.uniform(-spare, spare)
  turn = _choose(rng, (-1, 1)) if name in ("circling", "spinning") else 1
  sprite = Sprite(
    description=Description(
      colour=colour, shape=shape, motion=name, size=size, speed=speed
    ),
    centre=tuple(centre.tolist()),
    reach=tuple(reach.tolist()),
    radius=radius,
    rate=turn * rng.uniform(*motion.rates[speed]),
    phase=0.0,
  )
  return _draw_phase(rng, sprite)


def _draw_phase(rng: np.random.Generator, sprite: Sprite) -> Sprite:
  """The sprite with another phase at time 0."""
  return dataclasses.replace(sprite, phase=rng.uniform(*sprite.motion.start))
