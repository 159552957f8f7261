"""Recognises the content of toy scenes from pixels, without a neural network.

Objects are found by colour and tracked from frame to frame (`tracking`). The
shape is the one whose rendering, at the same place and size, is most similar to
the pixels. The motion follows from the track of position, area, orientation
and visibility. Generated videos may show anything: what cannot be recognised
gives no reading, one of low confidence, or the motion "unclear".

Limits: one plain background; objects of different colours that do not touch;
shapes of at least about seven pixels and motions of about one second; more than
8 frames per second, or blinking and swinging alias. H.264 stores the colours
of 32x32 videos at 16x16, so that one clip in ten is misread.
"""

import dataclasses
import functools
import itertools

import numpy as np

from lumiere_jax.toy_scenes import tracking
from lumiere_jax.toy_scenes.captions import parse_caption
from lumiere_jax.toy_scenes.scenes import (
  BACKGROUNDS,
  FOLDS,
  SHAPES,
  Description,
  Scene,
  coverage,
)
from lumiere_jax.toy_scenes.tracking import Track, name_motion

Array = np.ndarray
_ANGLES = 10  # Orientations tried within one symmetric turn.
_MAX_FRAMES = 6  # In which the shape is compared.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """One object of a video.

  Attributes:
    colour, shape, motion: keys of `COLOURS`, `SHAPES` and `MOTIONS`; or the
      motion "unclear", which no caption has.
    background: key of `BACKGROUNDS`.
    confidence: in [0, 1], the similarity of the object to its shape.
  """

  colour: str
  shape: str
  motion: str
  background: str
  confidence: float


def read(video: Array, fps: float = 16.0) -> tuple[Reading, ...]:
  """Recognises every object of a (t, h, w, 3) uint8 video.

  The readings are in the order of captions: from the left, or from the top if
  the objects are one above the other.
  """
  tracking.check_video(video)
  video = tracking.shrink(video)
  background = tracking.background_colour(video)
  tracks = tracking.find_tracks(video, background)
  return tuple(_reading(t, background, fps) for t in _in_order(tracks))


def agreement(
  readings: tuple[Reading, ...], things: tuple[Description, ...]
) -> dict[str, bool]:
  """Whether colour, shape and motion are right, each for all things.

  Readings and things are matched in the best of all orders. Everything is wrong
  if their numbers differ. Attributes that the things leave out are left out.
  """
  named = [
    name
    for name in ("colour", "shape", "motion")
    if all(getattr(thing, name) is not None for thing in things)
  ]
  if len(readings) != len(things):
    return dict.fromkeys(named, False)
  alike = lambda name, order: all(
    getattr(reading, name) == getattr(thing, name)
    for reading, thing in zip(order, things, strict=True)
  )
  orders = itertools.permutations(readings)
  verdicts = [{n: alike(n, order) for n in named} for order in orders]
  return max(verdicts, key=lambda verdict: sum(verdict.values()))


def matches(
  video: Array, caption: str | Scene, fps: float = 16.0
) -> dict[str, bool]:
  """Whether a (t, h, w, 3) uint8 video shows what `caption` describes.

  The caption is one of the procedural source, or the scene itself. Of colour,
  shape and motion, as far as it has them: True if right for every object.
  """
  if isinstance(caption, Scene):
    things = tuple(sprite.description for sprite in caption.sprites)
  else:
    things, _ = parse_caption(caption)
  return agreement(read(video, fps), things)


def _in_order(tracks: list[Track]) -> list[Track]:
  if not tracks:
    return []
  places = np.array([(np.nanmean(t.x), np.nanmean(t.y)) for t in tracks])
  axis = np.ptp(places, axis=0).argmax()
  return [tracks[k] for k in places[:, axis].argsort()]


def _reading(track: Track, background: Array, fps: float) -> Reading:
  shape, confidence = _name_shape(track)
  known = np.array(list(BACKGROUNDS.values()))
  nearest = np.linalg.norm(known - background, axis=1).argmin()
  return Reading(
    colour=track.colour,
    shape=shape,
    motion=name_motion(track, shape, fps),
    background=list(BACKGROUNDS)[nearest],
    confidence=confidence,
  )


def _name_shape(track: Track) -> tuple[str, float]:
  """The shape whose rendering is most similar, and the similarity."""
  frames = _best_frames(track)
  half = int(np.ceil(1.05 * np.sqrt(track.area[frames].max()))) + 1
  left = np.floor(track.x[frames]).astype(int) - half
  top = np.floor(track.y[frames]).astype(int) - half
  found = np.zeros((len(frames), 2 * half, 2 * half), np.float32)
  for picture, frame, u, v in zip(found, frames, left, top, strict=True):
    mine = track.frame == frame
    x, y, weight = track.px[mine] - u, track.py[mine] - v, track.weight[mine]
    fits = (np.minimum(x, y) >= 0) & (np.maximum(x, y) < 2 * half)
    picture[y[fits], x[fits]] = weight[fits]
  similarity = {}
  for shape in SHAPES:
    drawn = _drawings(shape, track, frames, half)
    both = (drawn * found).sum((2, 3))
    norms = np.sqrt((drawn**2).sum((2, 3)) * (found**2).sum((1, 2)))
    alike = both / np.maximum(norms, 1e-9)
    similarity[shape] = min(1.0, float(alike.max(0).mean()))
  best = max(similarity, key=lambda shape: similarity[shape])
  return best, similarity[best]


def _best_frames(track: Track) -> Array:
  """Indices of a few frames that show the object whole and large."""
  pool = track.whole if track.whole.any() else track.seen
  large = np.flatnonzero(pool & (track.area >= 0.7 * track.area[pool].max()))
  few = min(_MAX_FRAMES, len(large))
  return large[np.linspace(0, len(large) - 1, few).round().astype(int)]


def _drawings(shape: str, track: Track, frames: Array, half: int) -> Array:
  """Renderings of the shape at all angles, (angles, frames, side, side)."""
  turns = _ANGLES if shape in FOLDS else 1
  angles = np.arange(turns) * 2 * np.pi / turns / FOLDS.get(shape, 1)
  each = lambda v: np.tile(v, turns)
  drawn = coverage(
    shape,
    each(track.x[frames] % 1),
    each(track.y[frames] % 1),
    each(np.sqrt(track.area[frames] / _unit_area(shape))),
    angles.repeat(len(frames)),
    side=2 * half,
    parts=2,
  )
  return drawn.reshape(turns, len(frames), 2 * half, 2 * half)


@functools.cache
def _unit_area(shape: str) -> float:
  zero, radius = np.zeros(1), 50
  drawn = coverage(shape, zero, zero, zero + radius, zero, side=2 * radius + 2)
  return float(drawn.sum()) / radius**2
