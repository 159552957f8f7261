"""Reads what a procedural clip shows from its pixels, with no neural network.

Objects are found by colour and followed from frame to frame (`tracking`). Each
shape is the one that, drawn at the place and size found, looks most like the
pixels. The motion follows from the track of position, area, orientation and
visibility (`motion`). It judges generated videos too, so it reads anything:
what it cannot make sense of gives no reading, one of low confidence, or an
"unclear" motion.

Limits: one plain background; objects that differ in colour and do not touch;
shapes from about seven pixels across and motions from about one second; more
than 8 frames per second, or blinking and swinging alias. Videos of 32x32 that
went through H.264 have their colours at 16x16: one clip in ten is misread.
"""

import dataclasses
import functools
import itertools

import numpy as np

from lumiere_jax.errors import UserError
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


_LOOKS = 6  # Frames in which the shape is looked at.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """One object of a video.

  Attributes:
    colour, shape, motion: keys of `COLOURS`, `SHAPES` and `MOTIONS`; or
      motion "unclear", which no caption says.
    background: key of `BACKGROUNDS`.
    confidence: in [0, 1], the likeness of the object to its shape.
  """

  colour: str
  shape: str
  motion: str
  background: str
  confidence: float


def read(video: Array, fps: float = 16.0) -> tuple[Reading, ...]:
  """Names every object of a video.

  Args:
    video: (t, h, w, 3) uint8.
    fps: frames per second.

  Returns:
    One reading per object, in the order of captions: from the left, or from
    the top where they stand one above the other. Empty: none was found.

  Raises:
    UserError: not a (t, h, w, 3) uint8 array with at least one pixel.
  """
  if video.ndim != 4 or video.shape[3] != 3 or not video.size:
    raise UserError(
      "", f"video is {video.shape}", "give frames x height x width x 3"
    )
  if video.dtype != np.uint8:
    raise UserError("", f"video is {video.dtype}", "give uint8 from 0 to 255")
  video = tracking.shrink(video)
  background = tracking.background_colour(video)
  tracks = tracking.find_tracks(video, background)
  return tuple(_reading(t, background, fps) for t in _in_order(tracks))


def agreement(
  readings: tuple[Reading, ...], things: tuple[Description, ...]
) -> dict[str, bool]:
  """Whether colour, shape and motion are read right, each for all things.

  Readings and things are paired as suits them best, whatever their order. All
  is wrong if their numbers differ. What the things do not say is left out.
  """
  said = [
    name
    for name in ("colour", "shape", "motion")
    if all(getattr(thing, name) is not None for thing in things)
  ]
  if len(readings) != len(things):
    return dict.fromkeys(said, False)
  alike = lambda name, order: all(
    getattr(reading, name) == getattr(thing, name)
    for reading, thing in zip(order, things, strict=True)
  )
  orders = itertools.permutations(readings)
  verdicts = [{n: alike(n, order) for n in said} for order in orders]
  return max(verdicts, key=lambda verdict: sum(verdict.values()))


def matches(
  video: Array, caption: str | Scene, fps: float = 16.0
) -> dict[str, bool]:
  """Whether `video` shows what `caption` says.

  Args:
    video: (t, h, w, 3) uint8.
    caption: one of the procedural source, or the scene itself.
    fps: frames per second.

  Returns:
    colour, shape and motion, as far as the caption says them: True if right
    for every object.

  Raises:
    UserError: not a video, or not a caption of the procedural source.
  """
  if isinstance(caption, Scene):
    things = tuple(sprite.description for sprite in caption.sprites)
  else:
    things, _ = parse_caption(caption)
  return agreement(read(video, fps), things)


def _in_order(tracks: list[Track]) -> list[Track]:
  places = np.array([(np.nanmean(t.x), np.nanmean(t.y)) for t in tracks])
  if not tracks:
    return []
  axis = np.ptp(places, axis=0).argmax()
  return [tracks[k] for k in places[:, axis].argsort()]


def _reading(track: Track, background: Array, fps: float) -> Reading:
  shape, likeness = _name_shape(track)
  known = np.array(list(BACKGROUNDS.values()))
  nearest = np.linalg.norm(known - background, axis=1).argmin()
  return Reading(
    colour=track.colour,
    shape=shape,
    motion=name_motion(track, shape, fps),
    background=list(BACKGROUNDS)[nearest],
    confidence=likeness,
  )


def _name_shape(track: Track) -> tuple[str, float]:
  """The shape whose drawing is most like the pixels, and how much it is."""
  looks = _looks(track)
  half = int(np.ceil(1.05 * np.sqrt(track.area[looks].max()))) + 1
  left = np.floor(track.x[looks]).astype(int) - half
  top = np.floor(track.y[looks]).astype(int) - half
  found = np.zeros((len(looks), 2 * half, 2 * half), np.float32)
  for picture, frame, u, v in zip(found, looks, left, top, strict=True):
    mine = track.frame == frame
    x, y, weight = track.px[mine] - u, track.py[mine] - v, track.weight[mine]
    fits = (np.minimum(x, y) >= 0) & (np.maximum(x, y) < 2 * half)
    picture[y[fits], x[fits]] = weight[fits]
  likeness = {}
  for shape in SHAPES:
    drawn = _drawings(shape, track, looks, half)
    both = (drawn * found).sum((2, 3))
    norms = np.sqrt((drawn**2).sum((2, 3)) * (found**2).sum((1, 2)))
    alike = both / np.maximum(norms, 1e-9)
    likeness[shape] = min(1.0, float(alike.max(0).mean()))
  best = max(likeness, key=likeness.get)
  return best, likeness[best]


def _looks(track: Track) -> Array:
  """A few frames that show all of the object, and show it large."""
  pool = track.whole if track.whole.any() else track.seen
  large = np.flatnonzero(pool & (track.area >= 0.7 * track.area[pool].max()))
  few = min(_LOOKS, len(large))
  return large[np.linspace(0, len(large) - 1, few).round().astype(int)]


def _drawings(shape: str, track: Track, looks: Array, half: int) -> Array:
  """(angles, looks, side, side): the shape as it would look there, turned."""
  turns = _ANGLES if shape in FOLDS else 1
  angles = np.arange(turns) * 2 * np.pi / turns / FOLDS.get(shape, 1)
  each = lambda v: np.tile(v, turns)
  drawn = coverage(
    shape,
    each(track.x[looks] % 1),
    each(track.y[looks] % 1),
    each(np.sqrt(track.area[looks] / _unit_area(shape))),
    angles.repeat(len(looks)),
    side=2 * half,
    parts=2,
  )
  return drawn.reshape(turns, len(looks), 2 * half, 2 * half)


@functools.cache
def _unit_area(shape: str) -> float:
  zero, radius = np.zeros(1), 50
  drawn = coverage(shape, zero, zero, zero + radius, zero, side=2 * radius + 2)
  return float(drawn.sum()) / radius**2
