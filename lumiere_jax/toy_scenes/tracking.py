"""Segments and tracks coloured objects, and classifies their motion."""

import dataclasses

import numpy as np
from scipy import ndimage

from lumiere_jax.errors import UserError
from lumiere_jax.toy_scenes.scenes import COLOURS, CROSSING, FOLDS

Array = np.ndarray
_SIDE = 64  # Larger videos are averaged down to about this shorter side.
_CONTRAST = 28.0  # Minimum RGB distance of an object from the background.
_MIN_SEEN = 0.2  # Minimum fraction of the frames that show an object.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
  """One object over time.

  Attributes:
    colour: the nearest key of `COLOURS`.
    frame, px, py: (n,) int, positions of its pixels.
    weight: (n,) coverage of each pixel, in [0, 1].
    x, y: (t,) its centre in pixels, NaN where it is absent.
    area: (t,) in pixels.
    seen: (t,) whether it is present.
    whole: (t,) whether it is present and clear of the frame's edges.
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


def check_video(video: Array) -> None:
  """Raises a UserError unless `video` is (t, h, w, 3) uint8 and not empty."""
  if video.ndim != 4 or video.shape[3] != 3 or not video.size:
    raise UserError(
      "video", f"is {video.shape}", "give frames x height x width x 3"
    )
  if video.dtype != np.uint8:
    raise UserError("video", f"is {video.dtype}", "give uint8 from 0 to 255")


def shrink(video: Array) -> Array:
  """Averages blocks of pixels of a (t, h, w, 3) video; float32."""
  _, height, width, _ = video.shape
  block = max(1, min(height, width) // _SIDE)
  h, w = height // block, width // block
  kept = video[:, : h * block, : w * block]
  blocks = kept.reshape(-1, h, block, w, block, 3)
  return blocks.mean((2, 4), dtype=np.float32)


def background_colour(video: Array) -> Array:
  """The median colour (3,) of the frame's edges."""
  rows, columns = video[:, [0, -1]], video[:, :, [0, -1]]
  edges = [rows.reshape(-1, 3), columns.reshape(-1, 3)]
  return np.median(np.concatenate(edges), 0)


def find_tracks(video: Array, background: Array) -> list[Track]:
  """One track per colour that is present often and large enough for an object.

  Each connected patch gets a colour; patches of one colour are joined.

  Args:
    video: (t, h, w, 3) float, in [0, 255].
    background: (3,) its background colour.
  """
  difference = video - background
  contrast = np.linalg.norm(difference, axis=3)
  # Most pixels are background, so the median measures its noise.
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
      f, x, y, weight = (v[mine] for v in (frame, px, py, cover[k]))
      tracks.append(_track(colour, f, x, y, weight, video.shape))
  # Leaves out what is too rare, or too small, to be an object.
  sizes = [np.percentile(t.area[t.seen], 90) for t in tracks]
  return [
    track
    for track, size in zip(tracks, sizes, strict=True)
    if track.seen.mean() >= _MIN_SEEN and size >= 0.08 * max(sizes)
  ]


def _fit_colours(pixels: Array, background: Array) -> tuple[Array, Array]:
  """Fits pixels (n, 3) minus the background as its blends with each colour.

  Partly covered pixels lie on the line from the background to the colour, so
  the soft edges of a shape get the same colour as its inside. Gives coverage in
  [0, 1] and squared residual, each (colours, n).
  """
  rays = np.array(list(COLOURS.values())) - background
  along, lengths = rays @ pixels.T, (rays**2).sum(1, keepdims=True)
  cover = np.clip(along / lengths, 0, 1)
  squares = (pixels**2).sum(1)
  return cover, squares - 2 * cover * along + cover**2 * lengths


def _main_patches(area: Array, patch: Array, frame: Array) -> Array:
  """Mask of the patches that are not small against the largest of a frame."""
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
  """The track of the object with these pixels (n,)."""
  length, height, width, _ = shape
  # The best pixels count as fully covered, as drawn colours may be paler.
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


UNCLEAR = "unclear"

# Minimum speeds per second: of the centre in frame sizes, of the logarithm of
# the area, of turns. Slow motions have about twice these.
_MOVES, _GROWS, _TURNS = 0.08, 0.1, 0.06

# Minimum standard deviation of an oscillating centre, in frame sizes and in
# pixels.
_STRAYS, _STRAYS_PIXELS = 0.012, 0.35

_FAST = 2.0  # Minimum cycles per second of blinking and swinging.


def name_motion(track: Track, shape: str, fps: float) -> str:
  """A key of `MOTIONS`, or "unclear", by the first test that succeeds."""
  path = np.stack([track.x / track.size[1], track.y / track.size[0]], 1)
  size = np.log(np.maximum(track.area, 1))
  seconds = np.arange(len(path)) / fps
  strays = max(_STRAYS, _STRAYS_PIXELS / min(track.size))
  return (
    _blinking(track, fps)
    or _crossing(_slopes(path, track.whole, fps, fps / 8))
    or _oscillating(path[track.whole], seconds[track.whole], strays)
    or _changing_size(_slopes(size, track.whole, fps, fps / 4))
    or _spinning(track, shape, fps)
    or "still"
  )


def _blinking(track: Track, fps: float) -> str | None:
  """Appears and disappears repeatedly, away from the edges."""
  flips = track.seen[1:] != track.seen[:-1]
  in_the_open = track.whole[1:] | track.whole[:-1]
  count = int((flips & in_the_open).sum())
  if count < 2:
    return None
  return "blinking" if count * fps >= 2 * _FAST * len(flips) else UNCLEAR


def _slopes(signal: Array, whole: Array, fps: float, lag: float) -> Array:
  """Changes per second over `lag` frames throughout which it is whole."""
  lag = max(1, round(lag))
  breaks = np.cumsum(~whole)
  first = np.flatnonzero(whole[:-lag] & (breaks[lag:] == breaks[:-lag]))
  return (signal[first + lag] - signal[first]) * (fps / lag)


def _crossing(speeds: Array) -> str | None:
  """Steady motion along one axis; `speeds` (n, 2) in frame sizes per second."""
  if not len(speeds):
    return None
  usual = np.median(speeds, 0)
  axis = int(np.abs(usual).argmax())
  along, across = abs(usual[axis]), np.median(np.abs(speeds[:, 1 - axis]))
  wobble = np.median(np.abs(speeds[:, axis] - usual[axis]))
  if along < _MOVES or max(across, wobble) > 0.25 * along:
    return None
  return CROSSING[axis][int(usual[axis] > 0)]


def _oscillating(path: Array, seconds: Array, strays: float) -> str | None:
  """A periodic path (n, 2); along both axes it is a circle."""
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
  """Fits a sinusoid by least squares.

  Args:
    signal: (n,) not constant.
    seconds: (n,) times, ascending, possibly with gaps.

  Returns:
    Cycles per second and the fraction of variance explained; 0 if n < 4.
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
  """Steady growth; `slopes` (n,) of the logarithm of the area per second."""
  slope = np.median(slopes) if len(slopes) else 0.0
  if abs(slope) < _GROWS or np.mean(slopes * slope > 0) < 0.7:
    return None
  return "growing" if slope > 0 else "shrinking"


def _spinning(track: Track, shape: str, fps: float) -> str | None:
  """Rotation: for k-fold symmetry, sum of (x + iy)^k has k times its phase."""
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
