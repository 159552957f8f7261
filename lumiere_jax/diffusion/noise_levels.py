"""Which noise levels training draws, and which sampling steps through.

Both in log-SNR. T frames of n pixels that share something (a colour, a layout,
where things go) show it at a log-SNR of about -log(T n): averaged over them
all, the noise is that much weaker. Above it, what is shared is known; below
it, it cannot be seen. A picture model cares for levels down to -log(n); a
video model has to be taught, and sampled, lower by log(T).
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

from lumiere_jax.diffusion.schedules import Schedule
from lumiere_jax.errors import UserError, check_choice
from lumiere_jax.typing import PerSample, typechecked

REFERENCE_PIXELS = 64 * 64
"""The pictures that the cosine schedule was made for (simple diffusion)."""

LIMIT = 20.0
"""Training draws no log-SNR beyond, so that eps gives a finite x0."""

_TAIL = 1e-3  # The share of draws that a range of levels may leave out.


@runtime_checkable
class NoiseDistribution(Protocol):
  """The noise levels that training draws, by their quantiles."""

  def log_snr(self, quantile: PerSample) -> PerSample:
    """The log-SNR that a share `quantile` of the draws lie above.

    Of uniform quantiles it makes draws; in [0, 1), 0 is the cleanest.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTime:
  """Times of a schedule drawn uniformly (Imagen, Improved DDPM).

  Attributes:
    schedule: gives times their log-SNR.
  """

  schedule: Schedule

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    return self.schedule.log_snr(quantile)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal:
  """log(sigma / alpha) ~ N(mean, std^2): EDM's P_mean and P_std.

  Also SD3's logit-normal times, as t / (1 - t) of its straight paths is
  sigma / alpha (Esser et al. 2024, section 3.1).

  Attributes:
    mean: of log(sigma / alpha); EDM trains pictures at -1.2, SD3 at 0.
    std: EDM 1.2, SD3 1.
  """

  mean: float
  std: float

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    normal = jax.scipy.special.ndtri(jnp.clip(quantile, 1e-6, 1 - 1e-6))
    return -2 * (self.mean + self.std * normal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
  """Every log-SNR between two ends is drawn equally often.

  Attributes:
    low: the noisiest.
    high: the cleanest.
  """

  low: float
  high: float

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    return self.high + (self.low - self.high) * quantile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted:
  """Another distribution moved, and held within [-LIMIT, LIMIT].

  Attributes:
    of: the distribution.
    shift: added to its log-SNR; below 0 for more noise.
  """

  of: NoiseDistribution
  shift: float

  def log_snr(self, quantile: PerSample) -> PerSample:
    """See `NoiseDistribution`."""
    return jnp.clip(self.of.log_snr(quantile) + self.shift, -LIMIT, LIMIT)


DISTRIBUTIONS = ("schedule", "logit_normal", "normal", "uniform")


def auto_shift(
  frames: int, pixels: int, parent: tuple[int, int, float] | None
) -> float:
  """The shift of training noise that follows from what is redundant.

  A clip of more frames or pixels than the parent's shows what its frames and
  pixels share at proportionally more noise, so draws move by -log of the ratio:
  simple diffusion (Hoogeboom et al. 2023, section 3.1) and SD3 (section 5.3.2)
  for pixels, Snap Video (Menapace et al. 2024, section 3.2: inputs scaled for
  the square root of the frames) for frames.

  Args:
    frames: of a clip.
    pixels: of a frame.
    parent: frames, pixels and shift of the model it starts from; None: of
      none, whose place one picture of 64x64 takes.
  """
  old_frames, old_pixels, shift = parent or (1, REFERENCE_PIXELS, 0.0)
  return shift - math.log(frames * pixels / (old_frames * old_pixels))


def decisive_log_snr(frames: int, pixels: int) -> float:
  """-log(frames pixels): where what all of them share emerges from noise."""
  return -math.log(frames * pixels)


def noisiest(noise: NoiseDistribution) -> float:
  """The log-SNR that one draw in a thousand lies below."""
  return float(_drawn(noise, [1 - _TAIL])[0])


def evaluation_bins(
  noise: NoiseDistribution, count: int
) -> Float[np.ndarray, "edges"]:
  """Stretches of noise levels for a held-out loss by level.

  They are equally wide in log-SNR between the ends of all but two draws in a
  thousand, which the outermost ones take in: as clean and as noisy as training
  draws.

  Args:
    noise: the distribution.
    count: how many.

  Returns:
    (count + 1,) the quantiles of their edges, from 0 (clean) to 1 (noisy). So
    the loss at levels drawn from a bin, weighted by its width here, adds up to
    the training loss.
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
  with jax.ensure_compile_time_eval():  # also while a program is traced
    return np.asarray(noise.log_snr(jnp.asarray(quantiles, jnp.float32)))


GRIDS = ("log_snr", "karras", "trailing", "schedule")
_RHO = 7.0
_SHORT = 0.8995  # Grids that start at an earlier time leave too much out.


def parse_levels(grid: str) -> tuple[float, ...] | None:
  """The levels of a grid that is a list, such as '-inf,-8,-4,0,4'; else None.

  Raises:
    UserError: they do not rise, or one after the first is not finite.
  """
  if grid in GRIDS:
    return None
  try:
    levels = tuple(float(level) for level in grid.split(","))
  except ValueError:
    return None
  rising = all(a < b for a, b in itertools.pairwise(levels))
  finite = all(math.isfinite(level) for level in levels[1:])
  if not rising or not finite or not levels[0] < math.inf:
    raise UserError(
      f"grid={grid}:",
      "log-SNRs must increase, and only the first may be -inf",
      "give numbers such as -12,-8,-4,0,4",
    )
  return levels


def check_grid(grid: str, what: str = "grid") -> None:
  """Raises a UserError unless `grid` is a list of levels or one of `GRIDS`."""
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
  karras    the same, even in (sigma / alpha)^(1/7) (EDM, eq. 5)
  trailing  `start`, then even in the schedule's time (Lin et al. 2024)
  schedule  even in the schedule's time as first published: the clipped cosine
            of our format 1, IF's every n-th step; where that would leave out
            more than the noisiest tenth, and so start from noise that the
            network takes for a picture, as 'trailing' from the last step
  a list    as it is: -inf,-8,-4,0,4; -inf is `start`

  Args:
    grid: one of these.
    steps: at least 1; of a list, as many as it has.
    schedule: that grids in time are even in.
    start: where 'log_snr', 'karras' and 'trailing' begin: minus infinity, which
      is pure noise, or the noisiest level that the network knows. None of their
      levels is noisier.
    low: of 'log_snr' and 'karras', the first level after that.
    high: of these, the last level.
    shift: added to all levels but `start` and those of a list.

  Returns:
    (steps + 1,) float32, rising. The last one is +inf: a last step to there
    returns the predicted x0, without noise.

  Raises:
    UserError: fewer than one step, more than a discrete schedule has, or
      another number than the list has.
  """
  if steps < 1:
    raise UserError(f"steps={steps}", "is too few", "use at least 1")
  if (given := parse_levels(grid)) is not None:
    if len(given) != steps:
      raise UserError(
        "",
        f"the grid has {len(given)} levels, but steps={steps}",
        "leave the steps out, or give as many levels",
      )
    levels = np.array(given)
    if levels[0] == -np.inf:
      levels[0] = start
    if not np.all(np.diff(levels) > 0):
      raise UserError(
        f"grid={grid}:",
        f"this model starts at log-SNR {start:g}, the noisiest it knows",
        "leave out the levels below it",
      )
  elif grid == "schedule":
    levels = np.asarray(schedule.grid(steps))
    if schedule.time(levels[0]) < _SHORT:
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
) -> Sequence[float]:
  """`start`, and `steps - 1` levels from `low`, or `start`, to `high`."""
  first = [start] if start < low else []
  count, low = steps - len(first), max(start, low)
  if not low < high:
    raise UserError(
      "",
      f"the grid would go from log-SNR {low:g} to {high:g}",
      "set log_snr_min below log_snr_max, and both above the "
      "noisiest level the model knows",
    )
  if count == 1 and first:  # one level that stands for all
    return [start, (low + high) / 2]
  if grid == "karras":
    ends = np.exp(-np.array([low, high]) / 2 / _RHO)
    return np.append(first, -2 * _RHO * np.log(np.linspace(*ends, count)))
  return np.append(first, np.linspace(low, high, count))


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
  """A distribution by name.

  Args:
    name: one of `DISTRIBUTIONS`.
    schedule: of 'schedule', without shift.
    mean: of 'normal' and 'logit_normal'.
    std: of these.
    shift: added to the log-SNR.
    low: least log-SNR of 'uniform', before the shift.
    high: greatest log-SNR of 'uniform'.

  Raises:
    UserError: an unknown name.
  """
  check_choice("config.diffusion.noise", name, DISTRIBUTIONS)
  if name == "schedule":
    drawn = UniformTime(schedule=schedule)
  elif name == "uniform":
    drawn = Uniform(low=low, high=high)
  else:
    drawn = Normal(mean=mean, std=std)
  return Shifted(of=drawn, shift=shift)
