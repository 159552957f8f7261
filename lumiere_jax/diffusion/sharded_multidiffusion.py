"""MultiDiffusion with windows sharded over devices.

Windows are assigned to devices in order. A device owns the frames from the
start of its first window to that of the next device. The overlap, frames that
its windows cover beyond these, is fetched from the next devices, and the
predictions there are sent back: a step communicates twice the overlap, never
the whole canvas.

Devices own different numbers of frames, but shards must have equal size. So
each shard is as long as the longest one, padded with unused frames.
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
"""Per-device values, with a row for each device; see `Division.tables`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Division:
  """The assignment of windows and frames to devices.

  Attributes:
    window: frames of a window.
    windows: for each device, the first frames of its windows.
    shares: for each of these windows, the weights of its frames.
    first: for each device, the first frame that it owns.
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
    """Number of frames that each device owns; 0 without windows."""
    return tuple(map(int, np.diff([*self.first, self.num_frames])))

  @property
  def size(self) -> int:
    """Frames of each device's shard."""
    return max(self.counts)

  @property
  def frames(self) -> Int[np.ndarray, "n"]:
    """(devices * size,) frame of the video at each position of the shards.

    The padding repeats the last frame.
    """
    places = np.add.outer(self.first, np.arange(self.size)).ravel()
    return np.minimum(places, self.num_frames - 1)

  @property
  def places(self) -> Int[np.ndarray, "t"]:
    """(num_frames,) position of each frame in the shards."""
    parts = zip(range(self.devices), self.counts, strict=True)
    return np.concatenate(
      [k * self.size + np.arange(count) for k, count in parts]
    )

  @property
  def hops(self) -> tuple[tuple[int, int], ...]:
    """(distance, frames): number of frames fetched from devices ahead."""
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
    """Most frames that a device's shard and windows extend over."""
    ends = [self._end(k) - self.first[k] for k in range(self.devices)]
    return max(*ends, self.size, self.window)

  @property
  def tables(self) -> Tables:
    """Arrays with a row for each device, to be sharded over them.

    first, counts: (d,) see the properties. starts: (d, m) of its windows,
    relative to `first`; shares: (d, m, window), zero for padding windows.
    offsets: (d, hops) position of the fetched frames, relative to `first`;
    `reach`, out of use, if there are none.
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
    """The frame after the last one of its windows."""
    windows = self.windows[device]
    return windows[-1] + self.window if windows else self.first[device]


def divide(
  starts: Sequence[int],
  window: int,
  num_frames: int,
  devices: int,
  weights: str = "uniform",
) -> Division:
  """Assigns windows to devices, in order and as evenly as possible.

  `starts` are increasing, see `window_starts`; for `weights` see
  `multi_diffusion`. Devices without a window are idle.
  """
  if list(starts) != sorted(starts):
    raise UserError(
      f"windows from frames {tuple(starts)}",
      "are not in order",
      "compute the starts with window_starts",
    )
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
  """`multi_diffusion` of frames sharded over devices.

  Call it inside a `shard_map` over `axis`. The result equals that of one device
  up to rounding.

  Args:
    denoiser: is called with `division.window` frames; may be sharded over other
      axes of the mesh.
    division, tables: of the video, and the row of `division.tables` for this
      device: the first axis is 1.
    axis: mesh axis of the frames.
    chunk: windows that a device denoises at once.
  """
  hops = division.hops
  length = division.reach + max((n for _, n in hops), default=0)
  own = {name: table[0] for name, table in tables.items()}

  def fetch(part: Video) -> Video:
    """Appends the overlap frames of the next devices to the shard."""
    rest = length - part.shape[1]
    whole = jnp.pad(part, ((0, 0), (0, rest), *[(0, 0)] * (part.ndim - 2)))
    for i, (distance, count) in enumerate(hops):
      pairs = [(k + distance, k) for k in range(division.devices - distance)]
      received = lax.ppermute(part[:, :count], axis, pairs)
      whole = lax.dynamic_update_slice_in_dim(
        whole, received, own["offsets"][i], axis=1
      )
    return whole

  def send_back(whole: Video) -> Video:
    """The shard, plus the sums of other devices' windows over its frames."""
    part = whole[:, : division.size]
    for i, (distance, count) in enumerate(hops):
      pairs = [(k, k + distance) for k in range(division.devices - distance)]
      sent = lax.dynamic_slice_in_dim(whole, own["offsets"][i], count, axis=1)
      part = part.at[:, :count].add(lax.ppermute(sent, axis, pairs))
    return part

  def averaged(z: Video, log_snr: PerSample, cond: Cond) -> Prediction:
    sums = sum_windows(
      denoiser,
      fetch(z),
      log_snr,
      cond.map_frames(fetch),
      own["starts"],
      own["shares"],
      chunk,
    )
    return jax.tree.map(send_back, sums)

  return averaged
