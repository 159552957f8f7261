"""The shapes, as signed distances to their edges, and their coverage of pixels.

A shape lies inside the unit circle; `x` runs right and `y` down. Distances are
negative inside and exact near the edges, which is all that coverage needs.
"""

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Distance = Callable[[Array, Array], Array]


def _polygon(corners: int) -> Distance:
  """Regular polygon inside the unit circle, a corner at the top."""
  turns = 2 * np.pi * (np.arange(corners) + 0.5) / corners
  apothem = float(np.cos(np.pi / corners))

  def distance(x: Array, y: Array) -> Array:
    sides = [float(np.sin(a)) * x - float(np.cos(a)) * y for a in turns]
    return np.maximum.reduce(sides) - apothem

  return distance


def _star(x: Array, y: Array) -> Array:
  """Five points; folded at its ten mirror lines it has one straight side."""
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
"""Shape -> k if it looks the same after 1/k of a turn; no round ones here."""


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
  """How much of each pixel of a small square a shape covers, frame by frame.

  Args:
    shape: a key of `SHAPES`.
    x, y: (t,) its middle, in pixels from the middle of the square.
    radius: (t,) in pixels.
    angle: (t,) in radians, clockwise.
    side: of the square, in pixels.
    parts: a pixel's coverage is the mean of that of its parts x parts parts.

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
