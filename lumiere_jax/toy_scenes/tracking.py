"""Finds coloured objects before a plain background, follows them and names
how they move.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from lumiere_jax.toy_scenes.scenes import COLOURS, FOLDS

Array = np.ndarray


_SIDE = 64  # Larger videos are averaged down to about this shorter side.


_CONTRAST = 28.0  # Least RGB distance of an object's pixel from the background.


_ALWAYS = 0.2  # An object shows in this fraction of the frames, or more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
  """One object over time.

  Attributes:
    colour: the key of `COLOURS` that it looks most like.
    frame, px, py: (n,) int, where its pixels are.
    weight: (n,) how much it covers of each, in [0, 1].
    x, y: (t,) its middle in pixels, NaN where it is not there.
    area: (t,) in pixels.
    seen: (t,) whether it is there.
    whole: (t,) whether it is there and clear of the frame's edges.
    size: (height, width) of the frame in pixels.
  """

  colour: str
  frame: Array
  px: Array
  py: Array
  weight: Array
  x: Array
  y: Array
  area: Array
  seen: Array
  whole: Array
  size: tuple[int, int]


def shrink(video: Array) -> Array:
  """Averages blocks of pixels of a (t, h, w, 3) video; float32."""
  _, height, width, _ = video.shape
  block = max(1, min(height, width) // _SIDE)
  h, w = height // block, width // block
  kept = video[:, : h * block, : w * block]
  blocks = kept.reshape(-1, h, block, w, block, 3)
  return blocks.mean((2, 4), dtype=np.float32)


def background_colour(video: Array) -> Array:
  """The median colour (3,) along the frame's edges."""
  rows, columns = video[:, [0, -1]], video[:, :, [0, -1]]
  edges = [rows.reshape(-1, 3), columns.reshape(-1, 3)]
  return np.median(np.concatenate(edges), 0)


def find_tracks(video: Array, background: Array) -> list[Track]:
  """Names each connected patch by colour and joins those of one name.

  Args:
    video: (t, h, w, 3) float, in [0, 255].
    background: (3,) its background colour.

  Returns:
    One track for each colour that shows long and large enough to be an object.
  """
  difference = video - background
  contrast = np.linalg.norm(difference, axis=3)
  # Most pixels are background, so the median tells how noisy that is.
  foreground = contrast > max(_CONTRAST, 3 * np.median(contrast))
  within_frames = np.zeros((3, 3, 3), bool)
  within_frames[1] = True
  labels, count = ndimage.label(foreground, within_frames)
  frame, py, px = np.nonzero(foreground)
  patch = labels[foreground] - 1
  cover, miss = _fit_colours(difference[foreground], background)
  total = lambda values: np.bincount(patch, values, count)
  names = np.argmin([total(m) for m in miss], axis=0)
  tracks = []
  for k, colour in enumerate(COLOURS):
    area = np.where(names == k, total(cover[k]), 0)
    mine = _main_patches(area, patch, frame)[patch]
    if mine.any():
      where = (v[mine] for v in (frame, px, py, cover[k]))
      tracks.append(_track(colour, *where, video.shape))
  return _notable(tracks)


def _fit_colours(pixels: Array, background: Array) -> tuple[Array, Array]:
  """Explains each pixel as a partial cover of the background by each colour.

  A pixel that is partly covered lies on the line from the background to the
  colour, so that the soft edges of a shape name the same colour as its inside.

  Args:
    pixels: (n, 3) less the background.

  Returns:
    Cover in [0, 1] and squared miss, each (colours, n).
  """
  rays = np.array(list(COLOURS.values())) - background
  along, lengths = rays @ pixels.T, (rays**2).sum(1, keepdims=True)
  cover = np.clip(along / lengths, 0, 1)
  squares = (pixels**2).sum(1)
  return cover, squares - 2 * cover * along + cover**2 * lengths


def _main_patches(area: Array, patch: Array, frame: Array) -> Array:
  """Patches that are no mere crumbs beside the largest of their frame."""
  when = np.zeros(len(area), int)
  when[patch] = frame
  largest = np.zeros(frame.max(initial=0) + 1)
  np.maximum.at(largest, when, area)
  return (area >= 1) & (area >= 0.25 * largest[when])


def _track(
  colour: str,
  frame: Array,
  px: Array,
  py: Array,
  weight: Array,
  shape: tuple[int, ...],
) -> Track:
  """Measures the object of these pixels (n,) in a video of this shape."""
  length, height, width, _ = shape
  # Full cover is what the best pixels show: drawn colours may be paler.
  weight = np.minimum(weight / max(np.percentile(weight, 90), 0.5), 1)
  total = lambda values: np.bincount(frame, values, length)
  area = total(weight)
  seen = area > 0.08 * np.percentile(area[area > 0], 90)
  at_edge = (px == 0) | (px == width - 1) | (py == 0) | (py == height - 1)
  mean = lambda v: np.divide(
    total(weight * (v + 0.5)), area, np.full(length, np.nan), where=area > 0
  )
  return Track(
    colour=colour,
    frame=frame,
    px=px,
    py=py,
    weight=weight,
    x=mean(px),
    y=mean(py),
    area=area,
    seen=seen,
    whole=seen & (total(weight * at_edge) < 0.5),
    size=(height, width),
  )


def _notable(tracks: list[Track]) -> list[Track]:
  """Leaves out what shows too rarely, or too small, to be an object."""
  sizes = [np.percentile(t.area[t.seen], 90) for t in tracks]
  return [
    track
    for track, size in zip(tracks, sizes, strict=True)
    if track.seen.mean() >= _ALWAYS and size >= 0.08 * max(sizes)
  ]


UNCLEAR = "unclear"


# Least speeds that count, per second: of the middle in frames, of the
# logarithm of the area, of turns. Slow motions do about twice these.
_MOVES, _GROWS, _TURNS = 0.08, 0.1, 0.06


# Least deviation of the middle of what goes to and fro, in frames and pixels.
_STRAYS, _STRAYS_PIXELS = 0.012, 0.35


_FAST = 2.0  # Least cycles per second of blinking and swinging.


def name_motion(track: Track, shape: str, fps: float) -> str:
  """Names the motion of a track by the first of its marks that shows.

  Args:
    track: the object.
    shape: a key of `SHAPES`: what it is.
    fps: frames per second.

  Returns:
    A key of `MOTIONS`, or "unclear".
  """
  path = np.stack([track.x / track.size[1], track.y / track.size[0]], 1)
  size = np.log(np.maximum(track.area, 1))
  seconds = np.arange(len(path)) / fps
  strays = max(_STRAYS, _STRAYS_PIXELS / min(track.size))
  return (
    _coming_and_going(track, fps)
    or _crossing(_slopes(path, track.whole, fps, fps / 8))
    or _to_and_fro(path[track.whole], seconds[track.whole], strays)
    or _changing_size(_slopes(size, track.whole, fps, fps / 4))
    or _spinning(track, shape, fps)
    or "still"
  )


def _coming_and_going(track: Track, fps: float) -> str | None:
  """Blinking: being there or not, in the open, changes all the time."""
  flips = track.seen[1:] != track.seen[:-1]
  in_the_open = track.whole[1:] | track.whole[:-1]
  count = int((flips & in_the_open).sum())
  if count < 2:
    return None
  return "blinking" if count * fps >= 2 * _FAST * len(flips) else UNCLEAR


def _slopes(signal: Array, whole: Array, fps: float, lag: float) -> Array:
  """Changes per second over `lag` frames in which all of the object shows."""
  lag = max(1, round(lag))
  breaks = np.cumsum(~whole)
  first = np.flatnonzero(whole[:-lag] & (breaks[lag:] == breaks[:-lag]))
  return (signal[first + lag] - signal[first]) * (fps / lag)


def _crossing(speeds: Array) -> str | None:
  """Steady movement along one axis; `speeds` (n, 2) is in frames a second."""
  if not len(speeds):
    return None
  usual = np.median(speeds, 0)
  axis = int(np.abs(usual).argmax())
  along, across = abs(usual[axis]), np.median(np.abs(speeds[:, 1 - axis]))
  wobble = np.median(np.abs(speeds[:, axis] - usual[axis]))
  if along < _MOVES or max(across, wobble) > 0.25 * along:
    return None
  return (("left", "right"), ("up", "down"))[axis][int(usual[axis] > 0)]


def _to_and_fro(path: Array, seconds: Array, strays: float) -> str | None:
  """Movement (n, 2) that returns; along both axes it is a circle."""
  spread = path.std(0) if len(path) else np.zeros(2)
  if spread.max() < strays:
    return None
  both = spread.min() > 0.2 * spread.max()
  axes = (0, 1) if both else (spread.argmax(),)
  cycles = [cycle(path[:, axis], seconds) for axis in axes]
  name = "circling" if both else ("swinging", "bouncing")[axes[0]]
  fast = min(rate for rate, _ in cycles) >= _FAST
  regular = min(explained for _, explained in cycles) > 0.6
  return name if regular and fast == (name == "swinging") else UNCLEAR


def cycle(signal: Array, seconds: Array) -> tuple[float, float]:
  """The sinusoid that fits best.

  Args:
    signal: (n,) not all the same.
    seconds: (n,) when, ascending; with gaps, if need be.

  Returns:
    Its cycles per second, and the fraction of the variance it explains; both
    are 0 of fewer than four values.
  """
  if len(signal) < 4:
    return 0.0, 0.0
  fastest = 0.45 / np.diff(seconds).min()
  step = 0.2 / np.ptp(seconds)
  rates = np.arange(min(0.2, fastest / 2), fastest, step)
  angles = 2 * np.pi * rates[:, None] * seconds
  waves = [np.ones_like(angles), np.sin(angles), np.cos(angles)]
  basis, _ = np.linalg.qr(np.stack(waves, 2))
  fitted = ((signal - signal.mean()) @ basis) ** 2
  explained = fitted.sum(1) / len(signal) / signal.var()
  best = explained.argmax()
  return float(rates[best]), float(explained[best])


def _changing_size(slopes: Array) -> str | None:
  """Steady growth of the area's logarithm, per second (n,)."""
  slope = np.median(slopes) if len(slopes) else 0.0
  if abs(slope) < _GROWS or np.mean(slopes * slope > 0) < 0.7:
    return None
  return "growing" if slope > 0 else "shrinking"


def _spinning(track: Track, shape: str, fps: float) -> str | None:
  """Spinning: the moment of the shape's own symmetry turns with it.

  A shape that is the same after 1/k of a turn has a complex moment, the sum
  of (x + iy)^k, whose phase is k times the shape's angle.
  """
  fold = FOLDS.get(shape)
  if fold is None:
    return None
  x = track.px + 0.5 - track.x[track.frame]
  y = track.py + 0.5 - track.y[track.frame]
  moment = track.weight * (x + 1j * y) ** fold
  total = lambda v: np.bincount(track.frame, v, len(track.seen))
  moments = total(moment.real) + 1j * total(moment.imag)
  both = track.whole[1:] & track.whole[:-1]
  steps = (moments[1:] * moments[:-1].conj())[both].sum()
  turns = abs(np.angle(steps)) * fps / (2 * np.pi * fold)
  return "spinning" if turns > _TURNS else None
