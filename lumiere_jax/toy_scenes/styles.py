"""Procedural scenes in a style: something to fine-tune on that needs no files.

A style is the look of the whole frame: papers in place of the backgrounds, and
shapes that let them shine through. Hues, shapes and motions stay what they
were, so `reader` reads styled clips as it reads plain ones, and `strength`
tells by the colours alone how much of a style is seen.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from lumiere_jax.errors import UserError, check_choice
from lumiere_jax.toy_scenes import tracking
from lumiere_jax.toy_scenes.scenes import BACKGROUNDS, COLOURS

Array = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
  """What a style makes of a scene.

  Attributes:
    papers: name of a background -> its colour in this style.
    opacity: of the shapes, in (0, 1].
  """

  papers: Mapping[str, tuple[int, int, int]]
  opacity: float


STYLES: Mapping[str, Look] = {
  "pastel": Look(
    papers={
      "black": (222, 190, 168),
      "white": (250, 232, 190),
      "grey": (212, 214, 200),
      "navy": (186, 202, 232),
    },
    opacity=0.7,
  ),
}


STYLE = "pastel"
"""The style to take unless one says otherwise."""


# Soft edges and codecs wash out the colour of small objects: it counts less
# than that of the background.
_OBJECTS = 0.5


def in_style(caption: str, style: str = STYLE) -> str:
  """A caption that says the style too: "... in pastel style".

  Raises:
    UserError: the style is unknown.
  """
  find_look(style)
  return caption + _phrase(style)


def without_style(caption: str) -> str:
  """The caption without what `in_style` added, as `parse_caption` reads it."""
  for style in STYLES:
    caption = caption.removesuffix(_phrase(style))
  return caption


def strength(video: Array, style: str = STYLE) -> float:
  """How much of a style is seen, from 0 (plain) to 1, by colours alone.

  A background and the colour of an object on it are a point, which a style
  moves along a line; there is one for each pair of their names. The strength
  is how far along the nearest line the video lies, and less the further it
  lies off it. Of a blend of a plain and a styled clip it is the share of the
  latter.

  Args:
    video: (t, h, w, 3) uint8, a procedural scene or what a model takes for one.
    style: a key of `STYLES`.

  Returns:
    The mean over objects; where none is found, that of the background.

  Raises:
    UserError: the style is unknown, or not a (t, h, w, 3) uint8 video.
  """
  look = find_look(style)
  if video.ndim != 4 or video.shape[3] != 3 or not video.size:
    raise UserError(
      "", f"video is {video.shape}", "give frames x height x width x 3"
    )
  if video.dtype != np.uint8:
    raise UserError("", f"video is {video.dtype}", "give uint8 from 0 to 255")
  video = tracking.shrink(video)
  background = tracking.background_colour(video)
  share, nearest = _along(
    background, _colours(BACKGROUNDS), _colours(look.papers)
  )
  name = list(BACKGROUNDS)[nearest]
  plain = _pairs(BACKGROUNDS[name], 1.0)
  styled = _pairs(look.papers[name], look.opacity)
  shares = [
    _along(np.hstack([background, _OBJECTS * colour]), plain, styled)[0]
    for colour in _colours_of_objects(video, background)
  ]
  return float(np.mean(shares or [share]))


def find_look(style: str) -> Look:
  """The style of this name."""
  check_choice("style", style, STYLES)
  return STYLES[style]


def _phrase(style: str) -> str:
  return f" in {style} style"


def _colours(named: Mapping[str, tuple[int, int, int]]) -> Array:
  """(backgrounds, 3), in the order of `BACKGROUNDS`."""
  return np.array([named[name] for name in BACKGROUNDS], float)


def _pairs(background: tuple[int, int, int], opacity: float) -> Array:
  """(colours, 6): a background, and each colour as it looks on it."""
  behind = np.tile(background, (len(COLOURS), 1))
  seen = behind + opacity * (np.array(list(COLOURS.values())) - behind)
  return np.hstack([behind, _OBJECTS * seen])


def _colours_of_objects(video: Array, background: Array) -> list[Array]:
  """Of each object the median of the pixels that it covers best."""
  colours = []
  for track in tracking.find_tracks(video, background):
    pixels = video[track.frame, track.py, track.px]
    contrast = np.linalg.norm(pixels - background, axis=1)
    best = contrast >= np.percentile(contrast, 90)
    colours.append(np.median(pixels[best], 0))
  return colours


def _along(point: Array, start: Array, end: Array) -> tuple[float, int]:
  """How far along the nearest of several lines (k, n) a point (n,) lies.

  Returns:
    The share of the way, less by half where the point lies as far off the line
    as this is long; and which line it is.
  """
  way = end - start
  length = np.linalg.norm(way, axis=1)
  share = np.clip(((point - start) * way).sum(1) / length**2, 0, 1)
  miss = np.linalg.norm(start + share[:, None] * way - point, axis=1)
  nearest = int(miss.argmin())
  far = miss[nearest] / length[nearest]
  return float(share[nearest] / (1 + far**2)), nearest
