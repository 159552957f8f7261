"""Styles of toy scenes, to fine-tune on, and a measure of a style's strength.

A style has other background colours and translucent shapes. Hues, shapes and
motions stay the same, so `reader` reads styled clips like plain ones, and
`strength` measures the style by colours alone.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from lumiere_jax.errors import check_choice
from lumiere_jax.toy_scenes import tracking
from lumiere_jax.toy_scenes.scenes import BACKGROUNDS, COLOURS

Array = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """The appearance of a scene.

  Attributes:
    backgrounds: name of a background -> its colour in this style.
    opacity: of the shapes, in (0, 1].
  """

  backgrounds: Mapping[str, tuple[int, int, int]]
  opacity: float


STYLES: Mapping[str, Style] = {
  "pastel": Style(
    backgrounds={
      "black": (222, 190, 168),
      "white": (250, 232, 190),
      "grey": (212, 214, 200),
      "navy": (186, 202, 232),
    },
    opacity=0.7,
  )
}

STYLE = "pastel"
"""The default style."""

# Weight of object colours relative to the background: soft edges and codecs
# wash out the colours of small objects.
_OBJECTS = 0.5


def add_style(caption: str, style: str = STYLE) -> str:
  """Appends the style to a caption: "... in pastel style"."""
  get_style(style)
  return caption + _phrase(style)


def remove_style(caption: str) -> str:
  """The inverse of `add_style`, to get a caption for `parse_caption`."""
  for style in STYLES:
    caption = caption.removesuffix(_phrase(style))
  return caption


def strength(video: Array, style: str = STYLE) -> float:
  """The strength of a style in a video, from 0 (plain) to 1, by colours alone.

  The colours of a background and of an object on it form a point, which a style
  moves along a line, one for each pair of names. The strength is the position
  along the nearest line, reduced by the distance from it; the mean over objects
  or, without objects, that of the background. For a blend of a plain and a
  styled clip it is the share of the latter.
  """
  target = get_style(style)
  tracking.check_video(video)
  video = tracking.shrink(video)
  background = tracking.background_colour(video)
  share, nearest = _project(
    background, _colours(BACKGROUNDS), _colours(target.backgrounds)
  )
  name = list(BACKGROUNDS)[nearest]
  plain = _pairs(BACKGROUNDS[name], 1.0)
  styled = _pairs(target.backgrounds[name], target.opacity)
  shares = [
    _project(np.hstack([background, _OBJECTS * colour]), plain, styled)[0]
    for colour in _colours_of_objects(video, background)
  ]
  return float(np.mean(shares or [share]))


def get_style(style: str) -> Style:
  """The style of this name."""
  check_choice("style", style, STYLES)
  return STYLES[style]


def _phrase(style: str) -> str:
  return f" in {style} style"


def _colours(named: Mapping[str, tuple[int, int, int]]) -> Array:
  """(backgrounds, 3), in the order of `BACKGROUNDS`."""
  return np.array([named[name] for name in BACKGROUNDS], float)


def _pairs(background: tuple[int, int, int], opacity: float) -> Array:
  """(colours, 6): a background, and each colour as blended onto it."""
  behind = np.tile(background, (len(COLOURS), 1))
  blended = behind + opacity * (np.array(list(COLOURS.values())) - behind)
  return np.hstack([behind, _OBJECTS * blended])


def _colours_of_objects(video: Array, background: Array) -> list[Array]:
  """The median colour of the most contrasting pixels of each object."""
  colours = []
  for track in tracking.find_tracks(video, background):
    pixels = video[track.frame, track.py, track.px]
    contrast = np.linalg.norm(pixels - background, axis=1)
    best = contrast >= np.percentile(contrast, 90)
    colours.append(np.median(pixels[best], 0))
  return colours


def _project(point: Array, start: Array, end: Array) -> tuple[float, int]:
  """Projects a point (n,) onto the nearest of several line segments (k, n).

  Gives the position along the segment in [0, 1], halved if the distance from it
  equals its length, and the index of the segment.
  """
  way = end - start
  length = np.linalg.norm(way, axis=1)
  share = np.clip(((point - start) * way).sum(1) / length**2, 0, 1)
  miss = np.linalg.norm(start + share[:, None] * way - point, axis=1)
  nearest = int(miss.argmin())
  far = miss[nearest] / length[nearest]
  return float(share[nearest] / (1 + far**2)), nearest
