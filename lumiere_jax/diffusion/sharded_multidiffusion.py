"""MultiDiffusion with its windows on different devices.

Windows are dealt out in order; a device owns the frames from its first window's
start up to the next device's. What its windows see beyond these, the overlap,
comes from the devices after it, and what they predict there goes back to them:
twice the overlap frames travel in a step, the canvas never does.

Devices own unequal numbers of frames, but arrays on them are equal. So the
canvas is laid out in equal parts as long as the longest, the others filled up
with frames that nobody looks at.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from lumiere_jax.diffusion.multidiffusion import sum_windows, window_shares
from lumiere_jax.diffusion.prediction import Denoiser, Prediction
from lumiere_jax.errors import UserError
from lumiere_jax.typing import Cond, PerSample, Video

Tables = dict[str, Any]
"""What each device has to know, one row a device; see `Division.tables`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Division:
  """Which device has which windows and which frames.

  Attributes:
    window: frames of a window.
    windows: of each device, the first frames of its windows, in the video.
    shares: of each of them, its share in the mean of each of its frames.
    first: of each device, the first frame it owns.
    num_frames: of the video.
  """

  window: int
  windows: tuple[tuple[int, ...], ...]
  shares: tuple[tuple[tuple[float, ...], ...], ...]
  first: tuple[int, ...]
  num_frames: int

  @property
  def devices(self) -> int:
    """How many there are."""
    return len(self.windows)

  @property
  def counts(self) -> tuple[int, ...]:
    """Frames that each device owns; those without windows own none."""
    return tuple(map(int, np.diff([*self.first, self.num_frames])))

  @property
  def size(self) -> int:
    """Frames of each device's part of the canvas."""
    return max(self.counts)

  @property
  def frames(self) -> Int[np.ndarray, "n"]:
    """(devices * size,) which frame of the video each place holds.

    Places that nobody looks at repeat the last frame.
    """
    places = np.add.outer(self.first, np.arange(self.size)).ravel()
    return np.minimum(places, self.num_frames - 1)

  @property
  def places(self) -> Int[np.ndarray, "t"]:
    """(num_frames,) where each frame of the video lies."""
    parts = zip(range(self.devices), self.counts, strict=True)
    return np.concatenate(
      [k * self.size + np.arange(count) for k, count in parts]
    )

  @property
  def hops(self) -> tuple[tuple[int, int], ...]:
    """(distance, frames): what comes from the device so far ahead."""
    hops = []
    for distance in range(1, self.devices):
      needed = [
        min(self._end(k) - self.first[k + distance], self.counts[k + distance])
        for k in range(self.devices - distance)
        if self.windows[k]
      ]
      if max(needed, default=0) > 0:
        hops.append((distance, max(needed)))
    return tuple(hops)

  @property
  def reach(self) -> int:
    """Frames that a device's windows, and what it owns, come to at most."""
    ends = [self._end(k) - self.first[k] for k in range(self.devices)]
    return max(*ends, self.size, self.window)

  @property
  def tables(self) -> Tables:
    """Arrays with a row for each device, to be divided among them.

    first, counts: (d,) see the properties. starts: (d, m) of its windows,
    counted from `first`; shares: (d, m, window), zero where it has fewer
    windows than others. offsets: (d, hops) where what comes belongs in what
    the device looks at; beyond all that, where nothing is to come.
    """
    most = max(map(len, self.windows))
    starts = np.zeros((self.devices, most), np.int32)
    shares = np.zeros((self.devices, most, self.window), np.float32)
    offsets = np.full((self.devices, len(self.hops)), self.reach, np.int32)
    for k, (first, windows) in enumerate(
      zip(self.first, self.windows, strict=True)
    ):
      starts[k, : len(windows)] = np.subtract(windows, first)
      for i, share in enumerate(self.shares[k]):
        shares[k, i] = share
      for i, (distance, _) in enumerate(self.hops):
        if windows and k + distance < self.devices:
          offset = self.first[k + distance] - first
          offsets[k, i] = min(offset, self.reach)
    return {
      "first": np.asarray(self.first, np.int32),
      "counts": np.asarray(self.counts, np.int32),
      "starts": starts,
      "shares": shares,
      "offsets": offsets,
    }

  def _end(self, device: int) -> int:
    """The frame after the last one that its windows see."""
    windows = self.windows[device]
    return windows[-1] + self.window if windows else self.first[device]


def divide(
  starts: Sequence[int],
  window: int,
  num_frames: int,
  devices: int,
  weights: str = "uniform",
) -> Division:
  """Deals windows out to devices, in order and as evenly as can be.

  Args:
    starts: first frame of each window, rising; see `window_starts`.
    window: frames of a window.
    num_frames: of the video.
    devices: any number; those without a window are idle.
    weights: see `multi_diffusion`.

  Raises:
    UserError: windows miss a frame of the video, or are out of order.
  """
  if list(starts) != sorted(starts):
    raise UserError("", f"windows from frames {tuple(starts)} are not in order")
  shares = window_shares(starts, window, num_frames, weights)
  bounds = [k * len(starts) // devices for k in range(devices + 1)]
  cut = lambda rows: [tuple(rows[a:b]) for a, b in itertools.pairwise(bounds)]
  windows = cut([int(start) for start in starts])
  after, first = num_frames, []
  for own in reversed(windows):
    after = own[0] if own else after
    first.append(after)
  first.reverse()
  return Division(
    window=window,
    windows=tuple(windows),
    shares=tuple(cut([tuple(map(float, share)) for share in shares])),
    first=tuple(first),
    num_frames=num_frames,
  )


def multi_diffusion_over_devices(
  denoiser: Denoiser,
  division: Division,
  tables: Tables,
  axis: str,
  chunk: int = 1,
) -> Denoiser:
  """`multi_diffusion` of a canvas that lies on many devices.

  To be called inside a `shard_map` over `axis`. The same to rounding as on one
  device: each frame's sum has the same terms.

  Args:
    denoiser: sees `division.window` frames at a time; runs on one device of
      the axis, and may be spread over other axes of the mesh.
    division: of the video.
    tables: `division.tables`, of this device: each with a first axis of 1.
    axis: of the mesh.
    chunk: windows that a device denoises at once.
  """
  hops = division.hops
  length = division.reach + max((n for _, n in hops), default=0)
  own = {name: table[0] for name, table in tables.items()}

  def fetch(part: Video) -> Video:
    """Own frames, and behind them those that the windows see besides."""
    rest = length - part.shape[1]
    seen = jnp.pad(part, ((0, 0), (0, rest), *[(0, 0)] * (part.ndim - 2)))
    for i, (distance, count) in enumerate(hops):
      pairs = [(k + distance, k) for k in range(division.devices - distance)]
      came = lax.ppermute(part[:, :count], axis, pairs)
      seen = lax.dynamic_update_slice_in_dim(
        seen, came, own["offsets"][i], axis=1
      )
    return seen

  def give_back(seen: Video) -> Video:
    """Own frames, with what other devices' windows have added to them."""
    part = seen[:, : division.size]
    for i, (distance, count) in enumerate(hops):
      pairs = [(k, k + distance) for k in range(division.devices - distance)]
      theirs = lax.dynamic_slice_in_dim(seen, own["offsets"][i], count, axis=1)
      part = part.at[:, :count].add(lax.ppermute(theirs, axis, pairs))
    return part

  def averaged(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    seen = sum_windows(
      denoiser,
      fetch(z),
      log_snr,
      cond.map_frames(fetch),
      own["starts"],
      own["shares"],
      chunk,
    )
    return jax.tree.map(give_back, seen)

  return averaged
