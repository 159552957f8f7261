"""Toy scenes: shapes, colours and motions, and how they are rendered.

Shapes are signed distances to their edges. A shape lies inside the unit circle;
`x` runs right and `y` down. Distances are negative inside and exact near the
edges, which is all that anti-aliasing needs.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from jaxtyping import UInt8
import numpy as np

Array = np.ndarray
Distance = Callable[[Array, Array], Array]


def _polygon(corners: int) -> Distance:
  """Regular polygon inside the unit circle, with a corner at the top."""
  turns = 2 * np.pi * (np.arange(corners) + 0.5) / corners
  apothem = float(np.cos(np.pi / corners))

  def distance(x: Array, y: Array) -> Array:
    sides = [float(np.sin(a)) * x - float(np.cos(a)) * y for a in turns]
    return np.maximum.reduce(sides) - apothem

  return distance


def _star(x: Array, y: Array) -> Array:
  """Five-pointed star; folded at its ten mirror lines, it is one edge."""
  fold, notch = np.pi / 5, 0.45
  side = np.array([notch * np.sin(fold), 1 - notch * np.cos(fold)])
  across, along = (float(v) for v in side / np.hypot(*side))
  angle = np.abs((np.arctan2(x, -y) + fold) % (2 * fold) - fold)
  rho = np.hypot(x, y)
  return rho * (across * np.cos(angle) + along * np.sin(angle)) - across


def _plus(x: Array, y: Array) -> Array:
  x, y = np.abs(x), np.abs(y)
  return np.maximum(np.minimum(x, y) - 0.3, np.maximum(x, y) - 0.95)


SHAPES: Mapping[str, Distance] = {
  "circle": lambda x, y: np.hypot(x, y) - 0.95,
  "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.7,
  "triangle": _polygon(3),
  "star": _star,
  "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.78) - 0.21,
  "cross": _plus,
}
"""Shape -> signed distance to its edge, in units of its radius (< 0 inside)."""

FOLDS: Mapping[str, int] = {"square": 4, "triangle": 3, "star": 5, "cross": 4}
"""Shape -> k if 1/k of a turn maps it to itself; round shapes are absent."""


def coverage(
  shape: str,
  x: Array,
  y: Array,
  radius: Array,
  angle: Array,
  *,
  side: int,
  parts: int = 1,
) -> Array:
  """Coverage of the pixels of a small square by a shape, for each frame.

  Args:
    shape: a key of `SHAPES`.
    x, y: (t,) its centre, in pixels from the centre of the square.
    radius, angle: (t,) in pixels, and in radians clockwise.
    side: of the square, in pixels.
    parts: supersampling: each pixel averages parts x parts samples.

  Returns:
    (t, side, side) float32 in [0, 1].
  """
  grid = (np.arange(side * parts, dtype=np.float32) + 0.5) / parts - side / 2
  column = lambda v: np.asarray(v, np.float32)[:, None, None]
  x, y, radius = grid - column(x), grid[:, None] - column(y), column(radius)
  cos, sin = column(np.cos(angle)) / radius, column(np.sin(angle)) / radius
  distance = SHAPES[shape](cos * x + sin * y, cos * y - sin * x)
  covered = np.clip(0.5 - distance * (radius * parts), 0, 1)
  return covered.reshape(-1, side, parts, side, parts).mean((2, 4))


Fields = Mapping[str, Any]
"""Some of the fields of `Pose`; numbers stand for all times."""

Rates = Mapping[str | None, tuple[float, float]]
"""Speed word -> (minimum, maximum) cycles per second."""

COLOURS: Mapping[str, tuple[int, int, int]] = {
  "red": (225, 35, 40),
  "orange": (250, 140, 20),
  "yellow": (250, 230, 50),
  "green": (35, 165, 60),
  "cyan": (40, 210, 225),
  "blue": (50, 95, 240),
  "purple": (165, 50, 190),
}

BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
  "black": (10, 10, 10),
  "white": (245, 245, 245),
  "grey": (65, 65, 65),
  "navy": (20, 25, 75),
}

SIZES: Mapping[str, float] = {"small": 0.115, "large": 0.17}
"""Size word -> radius of the circumscribed circle."""

_FINE = 128  # Minimum shorter side at which coverage is sampled.
_CHUNK = 2**18  # Samples drawn at a time, few enough for the CPU cache.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """The words of a caption on one sprite; None: left out."""

  colour: str
  shape: str
  motion: str | None = None
  size: str | None = None
  speed: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sprite:
  """One moving shape.

  Attributes:
    description: colour, shape, motion, size and speed in words.
    centre: (x, y) centre of its path.
    reach: (x, y) maximum distance of its path from `centre`.
    radius: of the circumscribed circle; the maximum if it changes.
    rate: cycles of the motion per second; negative reverses the motion.
    phase: of the motion at time 0, in cycles.
  """

  description: Description
  centre: tuple[float, float]
  reach: tuple[float, float]
  radius: float
  rate: float
  phase: float

  @property
  def motion(self) -> "Motion":
    return MOTIONS[self.description.motion or "still"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """One or two sprites, which never overlap, and a plain background."""

  sprites: tuple[Sprite, ...]
  background: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
  """The pose of a sprite at `t` times; every field is (t,)."""

  x: Array
  y: Array
  radius: Array
  angle: Array
  visible: Array


@dataclasses.dataclass(frozen=True)
class Motion:
  """A motion, as changes to the pose of a static sprite.

  Attributes:
    phrase: its name in captions.
    path: (sprite, cycles (t,)) -> the fields of `Pose` that it changes.
    rates: that its speed is drawn from.
    start: (minimum, maximum) phase at time 0, where the sprite is in full view
      and not too small, so that the first frame matches the caption.
    reach: (x, y) distance from its centre that the path covers if there is
      room.
  """

  phrase: str
  path: Callable[[Sprite, Array], Fields]
  rates: Rates
  start: tuple[float, float] = (0.0, 1.0)
  reach: tuple[float, float] = (0.0, 0.0)


def _cross(axis: str, sign: int) -> Callable[[Sprite, Array], Fields]:
  """Crosses the frame and enters again on the opposite side."""

  def path(sprite: Sprite, cycles: Array) -> Fields:
    margin = 1.1 * sprite.radius  # Out of sight before it enters again.
    along = (1 + 2 * margin) * (cycles % 1) - margin
    return {axis: along if sign > 0 else 1 - along}

  return path


def _circle(sprite: Sprite, cycles: Array) -> Fields:
  angle, reach = 2 * np.pi * cycles, min(sprite.reach)
  return {
    "x": sprite.centre[0] + reach * np.cos(angle),
    "y": sprite.centre[1] + reach * np.sin(angle),
  }


def _bounce(sprite: Sprite, cycles: Array) -> Fields:
  """Free fall that starts and ends at the floor at every whole cycle."""
  fall = 2 * (2 * (cycles % 1) - 1) ** 2 - 1
  return {"y": sprite.centre[1] + sprite.reach[1] * fall}


def _swing(sprite: Sprite, cycles: Array) -> Fields:
  sway = np.sin(2 * np.pi * cycles)
  return {"x": sprite.centre[0] + sprite.reach[0] * sway}


def _two_speeds(slow: float, quick: float) -> Rates:
  return {
    "slowly": (0.85 * slow, 1.15 * slow),
    "quickly": (0.85 * quick, 1.15 * quick),
  }


# Three to four cycles per second: at 16 fps a cycle has at least four frames,
# so it does not alias, but key frames a quarter of a second apart miss it.
_FAST: Rates = {None: (3.0, 4.0)}

CROSSING = {0: ("left", "right"), 1: ("up", "down")}
"""Axis (0: x, 1: y) -> the motions that cross the frame along it."""

MOTIONS: Mapping[str, Motion] = {
  "still": Motion("standing still", lambda s, cycles: {}, {None: (0.0, 0.0)}),
  **{
    name: Motion(
      f"moving {name}",
      _cross("xy"[axis], sign),
      _two_speeds(0.15, 0.45),
      start=(0.3, 0.5),
    )
    for axis, names in CROSSING.items()
    for name, sign in zip(names, (-1, 1), strict=True)
  },
  "circling": Motion(
    "circling", _circle, _two_speeds(0.3, 0.8), reach=(0.22, 0.22)
  ),
  "bouncing": Motion(
    "bouncing", _bounce, _two_speeds(0.6, 1.5), reach=(0.0, 0.25)
  ),
  "spinning": Motion(
    "spinning",
    lambda s, cycles: {"angle": 2 * np.pi * cycles},
    _two_speeds(0.15, 0.5),
  ),
  "growing": Motion(  # To full size, then it starts again.
    "growing",
    lambda s, cycles: {"radius": s.radius * (0.4 + 0.6 * (cycles % 1))},
    _two_speeds(0.2, 0.6),
    start=(0.2, 0.5),
  ),
  "shrinking": Motion(
    "shrinking",
    lambda s, cycles: {"radius": s.radius * (1.0 - 0.6 * (cycles % 1))},
    _two_speeds(0.2, 0.6),
    start=(0.0, 0.3),
  ),
  "blinking": Motion(
    "blinking",
    lambda s, cycles: {"visible": cycles % 1 < 0.5},
    _FAST,
    start=(0.0, 0.5),
  ),
  "swinging": Motion("swinging", _swing, _FAST, reach=(0.12, 0.0)),
}


def pose(sprite: Sprite, seconds: Array) -> Pose:
  """The pose of `sprite` at the times `seconds` (t,)."""
  centre = {"x": sprite.centre[0], "y": sprite.centre[1]}
  still = centre | {"radius": sprite.radius, "angle": 0.0, "visible": True}
  moved = sprite.motion.path(sprite, sprite.phase + sprite.rate * seconds)
  fields = {**still, **moved}.items()
  return Pose(**{k: np.broadcast_to(v, seconds.shape) for k, v in fields})


def _paste(
  video: Array, sprite: Sprite, seconds: Array, opacity: float
) -> None:
  """Draws `sprite` onto `video` (t, h, w, 3), in place."""
  _, height, width, _ = video.shape
  short = min(height, width)
  at = pose(sprite, seconds)
  x, y = at.x * width, at.y * height
  left, top = np.floor(x).astype(int), np.floor(y).astype(int)
  half = math.ceil(sprite.radius * short) + 2
  cover = opacity * coverage(
    sprite.description.shape,
    x - left,
    y - top,
    at.radius * short,
    at.angle,
    side=2 * half,
    parts=max(1, math.ceil(_FINE / short)),
  )
  colour = np.array(COLOURS[sprite.description.colour], np.float32)
  corners = zip(top - half, left - half, strict=True)
  for frame, c, (v, u), seen in zip(
    video, cover, corners, at.visible, strict=True
  ):
    c = c[max(-v, 0) : max(height - v, 0), max(-u, 0) : max(width - u, 0)]
    if seen and c.size:
      v, u = max(v, 0), max(u, 0)
      below = frame[v : v + c.shape[0], u : u + c.shape[1]]
      below[...] = np.rint(below + c[..., None] * (colour - below))


def render(
  scene: Scene,
  num_frames: int,
  resolution: int | tuple[int, int],
  fps: float = 16.0,
  *,
  backgrounds: Mapping[str, tuple[int, int, int]] = BACKGROUNDS,
  opacity: float = 1.0,
) -> UInt8[Array, "t h w 3"]:
  """Renders frames 0, 1, ... of `scene`; frame k is at k / fps seconds.

  The resolution is (height, width) in pixels, or the side of a square; the
  opacity of the shapes is in (0, 1].
  """
  height, width = np.broadcast_to(resolution, 2)
  background = np.array(backgrounds[scene.background], np.uint8)
  video = np.tile(background, (num_frames, height, width, 1))
  seconds = np.arange(num_frames) / fps
  side = 3 * max(SIZES.values()) * max(min(height, width), _FINE)
  chunk = max(1, int(_CHUNK / side**2))
  for start in range(0, num_frames, chunk):
    part = slice(start, start + chunk)
    for sprite in scene.sprites:
      _paste(video[part], sprite, seconds[part], opacity)
  return video
