"""Captioned videos drawn from a seed: a data set that needs no files.

Scenes of one or two coloured shapes that move before a plain background (see
`scenes`). A clip is a pure function of seed, split, index and size.
"""

from collections.abc import Collection, Sequence
import dataclasses
import itertools
from typing import TypeVar

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.data.sources.base import Group
from lumiere_jax.errors import UserError, suggest
from lumiere_jax.toy_scenes.captions import (
  _ACROSS,
  Combination,
  _laned,
  combinations,
  describe,
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


_MARGIN = 0.03  # Of the frame, kept clear around what does not cross it.


_SPLITS = ("train", "held_out")


_MOMENTS = 2  # Draws of their own, beside those of the splits.


_LONG = 5.0  # Seconds within which moments lie.


_NAMES = {
  "colours": COLOURS,
  "shapes": SHAPES,
  "motions": MOTIONS,
  "backgrounds": BACKGROUNDS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProceduralSource:
  """Captioned clips, `num_clips` of them.

  Attributes:
    num_frames: frames of a clip; 1 makes images.
    resolution: (height, width) in pixels, or the side of a square.
    fps: frames per second.
    seed: another seed is another data set of the same kind.
    split: "train", or "held_out": only triples of (colour, shape, motion)
      that "train" never shows (see `is_held_out`).
    two_objects: the fraction of scenes that have two sprites.
    moments: of images, the fraction that show a scene at any moment of its
      motion and say it in the caption. The others show it as it begins, and
      their captions leave its motion out.
    colours, shapes, motions, backgrounds: names to draw from.

  Raises:
    UserError: a value that cannot be used.
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
    for field, known in _NAMES.items():
      _check_names(field, getattr(self, field), known)
    _check_names("split", (self.split,), _SPLITS)
    for field in ("num_clips", "num_frames"):
      _require(getattr(self, field) >= 1, field, "1 or more", self)
    _require(np.min(self.resolution) >= 8, "resolution", "8 or more", self)
    _require(self.seed >= 0, "seed", "0 or more", self)
    for field in ("two_objects", "moments"):
      _require(0 <= getattr(self, field) <= 1, field, "in [0, 1]", self)
    rates = (MOTIONS[m].rates.values() for m in self.motions)
    fastest = max(high for _, high in itertools.chain(*rates))
    least = 2 * fastest if self.num_frames > 1 else 0
    mend = f"above {least:g}, or leave out its fastest motions, which alias"
    _require(self.fps > least, "fps", mend, self)
    _require(self._combinations, "split", "another, or give more names", self)
    enough = not self.two_objects or self._axes
    _require(enough, "two_objects", "0, or give more names", self)

  @property
  def _combinations(self) -> tuple[Combination, ...]:
    return combinations(self.split, self.colours, self.shapes, self.motions)

  @property
  def _axes(self) -> list[int]:
    """Axes along which two sprites can stand: they differ in colour."""
    colours = lambda axis: {t[0] for t in _laned(self._combinations, axis)}
    return [axis for axis in _ACROSS if len(colours(axis)) > 1]

  def __len__(self) -> int:
    return self.num_clips

  def scene(self, index: int) -> Scene:
    """The scene of clip `index`, the same at every size and length."""
    if not 0 <= index < self.num_clips:
      raise IndexError(f"clip {index} of {self.num_clips}")
    rng = np.random.default_rng((self.seed, _SPLITS.index(self.split), index))
    background = _choose(rng, self.backgrounds)
    if rng.random() >= self.two_objects:
      everywhere = np.array([[0.0, 0.0], [1.0, 1.0]])
      sprites = (_place(rng, _choose(rng, self._combinations), everywhere),)
    else:
      sprites = self._two_sprites(rng)
    return Scene(sprites=sprites, background=background)

  def _two_sprites(self, rng: np.random.Generator) -> tuple[Sprite, Sprite]:
    """Each in its half of the frame, so that neither ever hides the other."""
    axis = _choose(rng, self._axes)
    triples = _laned(self._combinations, axis)
    first = _choose(rng, triples)
    second = _choose(rng, [t for t in triples if t[0] != first[0]])
    near, far = np.array([[[0.0, 0.0], [1.0, 1.0]]] * 2)
    near[1, axis] = far[0, axis] = 0.5
    return _place(rng, first, near), _place(rng, second, far)

  @property
  def groups(self) -> tuple[Group, ...]:
    """All clips are of one shape."""
    return (Group(indices=range(len(self))),)

  def captions(self, index: int) -> tuple[str, ...]:
    """What clip `index` shows, in the one way there is."""
    return (self.caption(index),)

  def caption(self, index: int) -> str:
    """What clip `index` shows; `parse_caption` reads it back."""
    return describe(self.scene(index), self._says_motion(index))

  def _says_motion(self, index: int) -> bool:
    """Of clips always, of images that are a moment of one."""
    if self.num_frames > 1:
      return True
    rng = np.random.default_rng((self.seed, _MOMENTS, index))
    return rng.random() < self.moments

  def clip(
    self, index: int, rng: np.random.Generator | None = None
  ) -> UInt8[np.ndarray, "t h w 3"]:
    """Draws clip `index`.

    Args:
      rng: starts every sprite elsewhere on its path, which no caption
        contradicts; None: where `scene(index)` has it.
    """
    scene = self.restarted(index, rng)
    return render(scene, self.num_frames, self.resolution, self.fps)

  def restarted(self, index: int, rng: np.random.Generator | None) -> Scene:
    """The scene that `clip` draws of the same arguments."""
    scene = self.scene(index)
    if rng is not None:
      sprites = [_restart(rng, s) for s in scene.sprites]
      if self.num_frames == 1 and self._says_motion(index):
        seconds = rng.uniform(0, _LONG)
        sprites = [_later(s, seconds) for s in sprites]
      scene = dataclasses.replace(scene, sprites=tuple(sprites))
    return scene


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
  return options[rng.integers(len(options))]


def _place(
  rng: np.random.Generator, triple: Combination, cell: np.ndarray
) -> Sprite:
  """A sprite whose whole path lies in `cell` = ((x0, y0), (x1, y1))."""
  colour, shape, name = triple
  motion = MOTIONS[name]
  # The size of one that grows or shrinks is its motion: no word for it.
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
  return _restart(rng, sprite)


def _restart(rng: np.random.Generator, sprite: Sprite) -> Sprite:
  """The same sprite, elsewhere on its path at time 0."""
  start = MOTIONS[sprite.description.motion].start
  return dataclasses.replace(sprite, phase=rng.uniform(*start))


def _later(sprite: Sprite, seconds: float) -> Sprite:
  """The same sprite, so much further on its path at time 0."""
  phase = sprite.phase + sprite.rate * seconds
  return dataclasses.replace(sprite, phase=phase)


def _check_names(
  field: str, names: tuple[str, ...], known: Collection[str]
) -> None:
  listed = f"choose from {', '.join(known)}"
  if not names:
    raise UserError("", f"procedural source: {field} is empty", listed)
  for name in names:
    if name not in known:
      near = suggest(name, known)
      raise UserError(
        "", f"procedural source: {field} has no {name!r}{near}", listed
      )


def _require(
  holds: object, field: str, mend: str, source: ProceduralSource
) -> None:
  if not holds:
    value = getattr(source, field)
    raise UserError(
      "", f"procedural source: {field} is {value!r}", f"make it {mend}"
    )
