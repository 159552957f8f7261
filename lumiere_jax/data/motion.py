"""Names how a tracked object moves, from its position, size, turn and presence.

The names are those of `scenes.MOTIONS`. Each has marks of its own; what moves
in some other way is "unclear".
"""

import numpy as np

from lumiere_jax.data.shapes import FOLDS
from lumiere_jax.data.tracking import Track

Array = np.ndarray
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
