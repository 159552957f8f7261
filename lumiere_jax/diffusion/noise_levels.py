"""The noise levels of training and of sampling, in log-SNR.

What T frames of n pixels have in common (a colour, a layout, a motion) emerges
from noise at a log-SNR of about -log(T n), as averaging over them weakens the
noise. An image model needs levels down to -log(n); a video model must be
trained and sampled at levels lower by log(T).
"""

from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from lumiere_jax.diffusion.schedules import LIMIT, Schedule
from lumiere_jax.errors import UserError, check_choice
from lumiere_jax.typing import PerSample, typechecked

REFERENCE_PIXELS = 64 * 64
"""The image size that the cosine schedule was made for (simple diffusion)."""

_TAIL = 1e-3  # Share of draws outside either end of a range of levels.


@runtime_checkable
class NoiseDistribution(Protocol):
  """The distribution of noise levels in training; a `Schedule` is one too."""

  def log_snr(self, quantile: PerSample, /) -> PerSample:
    """The quantile function: log-SNR that a share `quantile` of draws exceed.

    In [0, 1); 0 is the cleanest.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal:
  """log(sigma / alpha) ~ N(mean, std^2): EDM's P_mean -1.2 and P_std 1.2.

  With mean 0 and std 1 also SD3's logit-normal times, as sigma / alpha is
  t / (1 - t) on its straight paths (Esser et al. 2024, section 3.1).
  """

  mean: float
  std: float

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    normal = jax.scipy.special.ndtri(jnp.clip(quantile, 1e-6, 1 - 1e-6))
    return -2 * (self.mean + self.std * normal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
  """Uniform log-SNR from `high` (the cleanest) to `low` (the noisiest)."""

  low: float
  high: float

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    return self.high + (self.low - self.high) * quantile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted:
  """Another distribution, shifted (negative: more noise), in +-LIMIT."""

  of: NoiseDistribution
  shift: float

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    return jnp.clip(self.of.log_snr(quantile) + self.shift, -LIMIT, LIMIT)


DISTRIBUTIONS = ("schedule", "logit_normal", "normal", "uniform")


def auto_shift(
  frames: int, pixels: int, parent: tuple[int, int, float] | None
) -> float:
  """The shift of training noise that compensates redundancy.

  A clip with more frames and pixels than the parent's stays recognisable at
  proportionally more noise, so the shift is -log of the ratio: simple diffusion
  (Hoogeboom et al. 2023, section 3.1) and SD3 (section 5.3.2) for pixels, Snap
  Video (Menapace et al. 2024, section 3.2: inputs scaled by the square root of
  the frames) for frames.

  `parent` is frames, pixels and shift of the parent model; None: one image of
  64x64, unshifted.
  """
  old_frames, old_pixels, shift = parent or (1, REFERENCE_PIXELS, 0.0)
  return shift - math.log(frames * pixels / (old_frames * old_pixels))


def decisive_log_snr(frames: int, pixels: int) -> float:
  """-log(frames pixels): where the content shared by all emerges from noise."""
  return -math.log(frames * pixels)


def noisiest(noise: NoiseDistribution) -> float:
  """The log-SNR that one draw in a thousand is below."""
  return float(_drawn(noise, [1 - _TAIL])[0])


def evaluation_bins(
  noise: NoiseDistribution, count: int
) -> Float[np.ndarray, "edges"]:
  """Bins of noise levels, for a held-out loss by level.

  They are equally wide in log-SNR over 99.8% of the training draws; the
  outermost ones include the tails. Given are the (count + 1,) quantiles of the
  edges, from 0 (clean) to 1 (noisy). The mean of the bins' losses, weighted by
  their widths, is the training loss.
  """
  at = (np.arange(20_000) + 0.5) / 20_000
  drawn = _drawn(noise, at)
  high, low = np.quantile(drawn, [1 - _TAIL, _TAIL])
  inner = np.linspace(high, low, count + 1)[1:-1]
  below = np.searchsorted(-drawn, -inner) / len(drawn)
  return np.concatenate([[0.0], below, [1.0]])


def _drawn(
  noise: NoiseDistribution, quantiles: Sequence[float] | np.ndarray
) -> Float[np.ndarray, "n"]:
  with jax.ensure_compile_time_eval():  # May be called while tracing.
    return np.asarray(noise.log_snr(jnp.asarray(quantiles, jnp.float32)))


GRIDS = ("log_snr", "karras", "trailing", "schedule")
_RHO = 7.0
_EARLIEST_START = 0.8995  # Grids with an earlier first time start too clean.


def parse_levels(grid: str) -> tuple[float, ...] | None:
  """The levels of a grid that is a list, such as '-inf,-8,-4'; else None."""
  if grid in GRIDS:
    return None
  try:
    levels = tuple(float(level) for level in grid.split(","))
  except ValueError:
    return None
  increasing = all(a < b for a, b in itertools.pairwise(levels))
  finite = all(math.isfinite(level) for level in levels[1:])
  if not increasing or not finite or not levels[0] < math.inf:
    raise UserError(
      f"grid={grid}:",
      "log-SNRs must increase and only the first may be -inf",
      "give numbers such as -12,-8,-4,0,4",
    )
  return levels


def check_grid(grid: str, what: str = "grid") -> None:
  """Checks that `grid` is a list of levels or one of `GRIDS`."""
  if not isinstance(grid, str) or parse_levels(grid) is None:
    check_choice(what, grid, (*GRIDS, "a list of log-SNRs"))


@typechecked
def sampling_levels(
  grid: str,
  steps: int,
  *,
  schedule: Schedule,
  start: float | int,
  low: float | int,
  high: float | int,
  shift: float | int = 0.0,
) -> Float[np.ndarray, "n"]:
  """The noise levels of `steps` sampling steps.

  log_snr   `start`, then even in log-SNR from `low` to `high`
  karras    `start`, then even in (sigma / alpha)^(1/7) (EDM, eq. 5)
  trailing  `start`, then even in the schedule's time (Lin et al. 2024)
  schedule  the schedule's own grid: the clipped cosine of format 1, every n-th
            step of IF; if that would skip more than the noisiest tenth of the
            times, as 'trailing' from the last step
  a list    such as -inf,-8,-4,0,4; -inf is `start`

  They are (steps + 1,) float32 and increase. The last one is +inf: the last
  step returns the predicted x0.

  Args:
    grid: one of these.
    steps: at least 1; the length of a list.
    schedule: of the grids that are even in time.
    start: first level of 'log_snr', 'karras' and 'trailing': minus infinity,
      which is pure noise, or the noisiest level that the network was trained
      on. No level of the grid is noisier.
    low, high: second and last level of 'log_snr' and 'karras'.
    shift: added to all levels except `start` and those of a list.
  """
  if steps < 1:
    raise UserError(f"steps={steps}", "is too few", "use at least 1")
  if (given := parse_levels(grid)) is not None:
    if len(given) != steps:
      raise UserError(
        f"grid={grid}:",
        f"the grid has {len(given)} levels, but steps={steps}",
        "omit the steps, or give as many levels",
      )
    levels = np.array(given)
    if levels[0] == -np.inf:
      levels[0] = start
    if not np.all(np.diff(levels) > 0):
      raise UserError(
        f"grid={grid}:",
        f"the noisiest level of this model is log-SNR {start:g}",
        "omit the levels below it",
      )
  elif grid == "schedule":
    levels = np.asarray(schedule.grid(steps))
    if schedule.time(levels[0]) < _EARLIEST_START:
      levels = np.asarray(schedule.trailing(steps))
    levels = levels + shift
  elif grid == "trailing":
    levels = np.asarray(schedule.trailing(steps)) + shift
    levels = np.append(start, np.maximum(levels[1:], start))
  else:
    check_grid(grid)
    levels = _between(grid, steps, start, low + shift, high + shift)
  return np.append(levels, np.inf).astype(np.float32)


def _between(
  grid: str, steps: int, start: float, low: float, high: float
) -> Float[np.ndarray, "n"]:
  """`start`, and `steps - 1` levels from max(low, start) to `high`."""
  first = [start] if start < low else []
  count, low = steps - len(first), max(start, low)
  if not low < high:
    raise UserError(
      f"grid={grid}:",
      f"the levels would go from log-SNR {low:g} to {high:g}",
      "set log_snr_min below log_snr_max, and both above the noisiest level "
      "that the model was trained on",
    )
  if count == 1 and first:  # A single level, in the middle.
    return np.array([start, (low + high) / 2])
  if grid == "karras":
    noisy, clean = (math.exp(-level / 2 / _RHO) for level in (low, high))
    rest = -2 * _RHO * np.log(np.linspace(noisy, clean, count))
  else:
    rest = np.linspace(low, high, count)
  return np.concatenate([first, rest])


def as_distribution(
  name: str,
  *,
  schedule: Schedule,
  mean: float,
  std: float,
  shift: float,
  low: float,
  high: float,
) -> NoiseDistribution:
  """A distribution by name, one of `DISTRIBUTIONS`.

  Args:
    name: 'schedule' is uniform in its times (Imagen, Improved DDPM).
    schedule: without shift.
    mean, std: of 'normal' and 'logit_normal'.
    shift: added to the log-SNR.
    low, high: log-SNRs of 'uniform', before the shift.
  """
  check_choice("config.diffusion.noise", name, DISTRIBUTIONS)
  drawn: NoiseDistribution = Normal(mean=mean, std=std)
  if name == "schedule":
    drawn = schedule
  elif name == "uniform":
    drawn = Uniform(low=low, high=high)
  return Shifted(of=drawn, shift=shift)
