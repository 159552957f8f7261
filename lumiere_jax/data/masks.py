"""Mask patterns for training the conditional model (Lumiere, section 4.2).

`Mask, 1 = given`: 1 marks pixels that the model is given, 0 pixels that it
generates.

The paper does not publish how it draws training masks. These patterns are the
tasks it shows (image-to-video, inpainting, cinemagraphs) and close variants.
"""

from collections.abc import Callable
import dataclasses

from jaxtyping import UInt8
import numpy as np

from lumiere_jax.errors import UserError, check_choice

Mask = UInt8[np.ndarray, "t h w 1"]
"""1 = given, 0 = to generate."""

Shape = tuple[int, int, int]
"""(frames, height, width)."""

Rng = np.random.Generator


def none(rng: Rng, shape: Shape) -> Mask:
  """Nothing is given: text-to-video."""
  return _frames(shape, [])


def everything(rng: Rng, shape: Shape) -> Mask:
  """Everything is given: the network learns to copy."""
  return _frames(shape, range(shape[0]))


def first_frame(rng: Rng, shape: Shape) -> Mask:
  """Image-to-video."""
  return _frames(shape, [0])


def first_last(rng: Rng, shape: Shape) -> Mask:
  """Interpolation between the first and the last frame."""
  return _frames(shape, [0, shape[0] - 1])


def first_k(rng: Rng, shape: Shape) -> Mask:
  """Extension: from one frame up to half of the frames are given."""
  return _frames(shape, range(rng.integers(1, max(1, shape[0] // 2) + 1)))


def random_frames(rng: Rng, shape: Shape) -> Mask:
  """Random frames at a random density, at least one."""
  given = rng.random(shape[0]) < rng.random()
  given[rng.integers(shape[0])] = True
  return _frames(shape, np.flatnonzero(given))


def random_boxes(rng: Rng, shape: Shape) -> Mask:
  """Inpainting: one to four static boxes are generated."""
  mask = everything(rng, shape)
  for _ in range(rng.integers(1, 5)):
    top, left, bottom, right = _box(rng, shape)
    mask[:, top:bottom, left:right] = 0
  return mask


def moving_boxes(rng: Rng, shape: Shape) -> Mask:
  """Inpainting: one or two boxes that move in a straight line are generated."""
  mask = everything(rng, shape)
  frames, height, width = shape
  for _ in range(rng.integers(1, 3)):
    top, left, bottom, right = _box(rng, shape)
    size = np.array([bottom - top, right - left])
    path = np.linspace(
      (top, left), rng.integers(0, np.array([height, width]) - size + 1), frames
    )
    for frame, (y, x) in zip(mask, path.round().astype(int), strict=True):
      frame[y : y + size[0], x : x + size[1]] = 0
  return mask


def border(rng: Rng, shape: Shape) -> Mask:
  """Outpainting: up to 40% at one or more of the edges is generated."""
  sides = np.array(shape[1:])
  moves = rng.random((2, 2)) < 0.5
  moves[rng.integers(2), rng.integers(2)] = True
  margins = np.ceil(rng.uniform(0, 0.4, (2, 2)) * sides).astype(int) * moves
  (top, left), (bottom, right) = margins
  mask = none(rng, shape)
  mask[:, top : shape[1] - bottom, left : shape[2] - right] = 1
  return mask


def region(rng: Rng, shape: Shape) -> Mask:
  """Cinemagraph: a static box or ellipse is generated after the first frame."""
  top, left, bottom, right = _box(rng, shape)
  y, x = np.ogrid[: shape[1], : shape[2]]
  inside = (top <= y) & (y < bottom) & (left <= x) & (x < right)
  if rng.random() < 0.5:
    radii = (bottom - top) / 2, (right - left) / 2
    dy, dx = (y + 0.5 - top) / radii[0] - 1, (x + 0.5 - left) / radii[1] - 1
    inside &= dy**2 + dx**2 <= 1
  mask = everything(rng, shape)
  mask[1:, inside] = 0
  return mask


_ALL = (
  *(none, first_frame, first_last, first_k, random_boxes, moving_boxes),
  *(border, region, random_frames, everything),
)

PATTERNS: dict[str, Callable[[Rng, Shape], Mask]] = {
  pattern.__name__: pattern for pattern in _ALL
}


def _frames(shape: Shape, given) -> Mask:
  """A mask in which the frames `given` are given as a whole."""
  mask = np.zeros((*shape, 1), np.uint8)
  mask[list(given)] = 1
  return mask


def _box(rng: Rng, shape: Shape) -> tuple[int, int, int, int]:
  """(top, left, bottom, right): 1/8 to 3/4 of each side."""
  spans = []
  for side in shape[1:]:
    size = max(1, round(side * rng.uniform(1 / 8, 3 / 4)))
    start = int(rng.integers(0, side - size + 1))
    spans.append((start, start + size))
  (top, bottom), (left, right) = spans
  return top, left, bottom, right


@dataclasses.dataclass(frozen=True)
class MaskMix:
  """Mask patterns and their relative weights."""

  weights: tuple[tuple[str, float], ...]

  @classmethod
  def parse(cls, text: str) -> "MaskMix":
    """Parses 'first_frame:8 border:2'; a name alone has weight 1."""
    field = "config.data.masks"
    weights: dict[str, float] = {}
    for entry in text.split():
      name, colon, number = entry.partition(":")
      check_choice(field, name, PATTERNS)
      if name in weights:
        raise UserError(field, f"names {name!r} twice", "keep one")
      try:
        weights[name] = float(number) if colon else 1.0
      except ValueError:
        weights[name] = 0.0
      if not 0 < weights[name] < float("inf"):
        raise UserError(
          f"{field}:", f"{entry!r} has no weight above 0", f"write {name}:1"
        )
    return cls(tuple(weights.items()))

  def draw(self, rng: Rng, shape: Shape) -> Mask:
    """Draws a pattern by weight, then a mask of it (1 = given)."""
    names, weights = zip(*self.weights, strict=True)
    share = np.array(weights) / sum(weights)
    return PATTERNS[names[rng.choice(len(names), p=share)]](rng, shape)
