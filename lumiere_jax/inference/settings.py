"""How videos are sampled, as the user says it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from lumiere_jax.diffusion.noise_levels import check_grid, parse_levels
from lumiere_jax.diffusion.samplers import SAMPLERS
from lumiere_jax.errors import UserError, check_choice, check_unit, option
from lumiere_jax.stages.config import LOG_SNR_LIMIT, SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How videos are sampled; the first field of a pair is the base's.

  What is None is as the bundle of each stage says (`StageConfig.defaults`).

  Attributes:
    steps: sampling steps.
    ssr_steps: of super-resolution; None: as `steps`, if these are given.
    grid: noise levels of the steps: 'log_snr', 'karras', 'trailing',
      'schedule', or a list of log-SNRs such as '-inf,-8,-4,0,4', which is for
      the base alone.
    ssr_grid: of super-resolution; None: as `grid`, if that is a name.
    log_snr_min: of the base: first level of 'log_snr' and 'karras' after pure
      noise.
    log_snr_max: of the base: last level of these.
    shift: of the base: added to all levels.
    sampler: 'ddpm', 'ddim', 'dpmpp_2m' or 'heun' (two evaluations a step).
    guidance_scale: 1 is the conditional model itself.
    ssr_guidance_scale: of super-resolution.
    guidance_rescale: in [0, 1]; how far guided frames are taken back to the
      contrast of unguided ones (of all stages, as the next three).
    guidance_interval: schedule times (low, high) between which is guided.
    oscillate_after: steps before guidance starts to alternate; -1 is never.
    oscillate_low: the scale it then alternates with.
    num_frames: length; 0: as trained.
    size: (height, width) of the finished video in pixels; None: as trained.
      Larger frames are seen in windows (MultiDiffusion in space).
    tile_overlap: share of such a window that neighbours have in common.
    window: frames that the last stage sees at once; 0: as many as it was
      trained on, or the whole video where that is shorter.
    overlap: least frames shared by neighbouring windows; 2 in the paper.
    window_batch: windows denoised together; memory grows with it.
    frame_chunk: frames that spatial layers work on at once; 0: all. Less
      memory, the same video.
    noise_level: of the low-resolution video, in [0, 1].
    percentile: of dynamic thresholding.
    max_value: largest threshold.
    chunk: sampling steps between two updates of the progress bar.
  """

  steps: int | None = None
  ssr_steps: int | None = None
  grid: str | None = None
  ssr_grid: str | None = None
  log_snr_min: float | None = None
  log_snr_max: float | None = None
  shift: float | None = None
  sampler: str | None = None
  guidance_scale: float | None = None
  ssr_guidance_scale: float | None = None
  guidance_rescale: float = 0.0
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  oscillate_after: int = -1
  oscillate_low: float = 1.0
  num_frames: int = 0
  size: tuple[int, int] | None = None
  tile_overlap: float = 0.5
  window: int = 0
  overlap: int = 2
  window_batch: int = 1
  frame_chunk: int = 0
  noise_level: float | None = None
  percentile: float | None = None
  max_value: float | None = None
  chunk: int = 5

  def __post_init__(self):
    least = {
      "steps": 1,
      "ssr_steps": 1,
      "num_frames": 0,
      "window": 0,
      "overlap": 0,
      "window_batch": 1,
      "frame_chunk": 0,
      "max_value": 1,
      "chunk": 1,
      "guidance_scale": 0,
      "ssr_guidance_scale": 0,
      "oscillate_after": -1,
      "oscillate_low": 0,
    }
    given = {k: v for k, v in vars(self).items() if v is not None}
    for name, low in least.items():
      if name in given and not given[name] >= low:  # a NaN too
        raise UserError(option(name, given[name]), f"must be at least {low}")
    for name in ("noise_level", "percentile", "guidance_rescale"):
      if name in given:
        check_unit(option(name), given[name])
    if not 0 <= self.tile_overlap < 1:
      raise UserError(
        f"{option('tile_overlap')}={self.tile_overlap:g}",
        "must be 0 or more, below 1",
      )
    low, high = self.guidance_interval
    if not 0 <= low <= high <= 1:
      raise UserError(
        f"{option('guidance_interval')}={low:g},{high:g}",
        "is no interval in [0, 1]",
        "give the lower time first, such as 0.2,0.8",
      )
    if self.sampler is not None:
      check_choice(option("sampler"), self.sampler, SAMPLERS)
    for name in ("grid", "ssr_grid"):
      if name in given:
        check_grid(given[name], option(name))
    for name in ("log_snr_min", "log_snr_max", "shift"):
      if not abs(given.get(name, 0)) <= LOG_SNR_LIMIT:  # a NaN too
        raise UserError(
          option(name, given[name]),
          f"must be from {-LOG_SNR_LIMIT:g} to {LOG_SNR_LIMIT:g}",
        )
    self._check_used(given)

  def _check_used(self, given: Mapping[str, Any]) -> None:
    """Raises a UserError where a flag would change nothing."""
    if self.grid is None or self.grid in ("log_snr", "karras"):
      return
    is_list = parse_levels(self.grid) is not None
    for name in ("log_snr_min", "log_snr_max", "shift"):
      if name in given and (is_list or name != "shift"):
        raise UserError(
          "",
          f"{option(name)} changes nothing with {option('grid')}={self.grid}",
          f"leave it out, or take {option('grid')}=log_snr",
        )

  def of(self, slot: str, defaults: SamplingConfig) -> SamplingConfig:
    """How 'base' or 'ssr' is sampled: as said here, else as by default."""
    said = {
      name: getattr(self, name)
      for name in ("sampler", "percentile", "max_value", "noise_level", "steps")
    }
    said["grid"] = self.grid
    if slot == "ssr":
      is_name = self.grid is not None and parse_levels(self.grid) is None
      said["grid"] = self.ssr_grid or (self.grid if is_name else None)
      said["guidance_scale"] = self.ssr_guidance_scale
      said["steps"] = self.ssr_steps
    else:
      names = ("guidance_scale", "log_snr_min", "log_snr_max", "shift")
      said |= {name: getattr(self, name) for name in names}
    levels = said["grid"] and parse_levels(said["grid"])
    if said["steps"] is None:
      said["steps"] = len(levels) if levels else self.steps
    return dataclasses.replace(
      defaults, **{k: v for k, v in said.items() if v is not None}
    )
