"""Sampling settings."""

import dataclasses

from lumiere_jax.diffusion.noise_levels import check_grid, parse_levels
from lumiere_jax.diffusion.samplers import SAMPLERS
from lumiere_jax.errors import UserError, option
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.stages.config import LOG_SNR_LIMIT, SamplingConfig


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How videos are sampled.

  None stands for the default that each stage's bundle records
  (`StageConfig.defaults`). Fields without `ssr_` that have a counterpart with
  it are those of the base.

  Attributes:
    chunk: steps between two updates of progress; front ends set it.
  """

  steps: int | None = setting(
    None, "Sampling steps. Default: the model's.", least=1, group="steps"
  )
  ssr_steps: int | None = setting(
    None,
    f"Sampling steps of super-resolution. Default: as {option('steps')}.",
    least=1,
    label="Steps of super-resolution",
    group="steps",
  )
  sampler: str | None = setting(
    None,
    f"{', '.join(SAMPLERS)}. Default: the model's. heun evaluates the network "
    "twice a step.",
    choices=SAMPLERS,
    group="steps",
  )
  grid: str | None = setting(
    None,
    "Noise levels of the steps: log_snr, karras, trailing, schedule, or (for "
    "the base) a list of log-SNRs such as -inf,-8,-4,0,4. Default: the "
    "model's.",
  )
  ssr_grid: str | None = setting(
    None,
    "Noise levels of super-resolution. Default: as "
    f"{option('grid')}, if that is a name.",
  )
  log_snr_min: float | None = setting(
    None,
    "First noise level of the base after pure noise, for the grids log_snr and "
    "karras.",
    least=-LOG_SNR_LIMIT,
    most=LOG_SNR_LIMIT,
  )
  log_snr_max: float | None = setting(
    None,
    "Last and cleanest noise level of the base, for the same grids.",
    least=-LOG_SNR_LIMIT,
    most=LOG_SNR_LIMIT,
  )
  shift: float | None = setting(
    None,
    "Added to the log-SNRs of the base; negative values mean more noise.",
    least=-LOG_SNR_LIMIT,
    most=LOG_SNR_LIMIT,
  )
  guidance_scale: float | None = setting(
    None,
    "Classifier-free guidance scale of the base; 1 is the conditional model "
    "without guidance.",
    least=0,
    label="Guidance",
    group="guidance",
  )
  ssr_guidance_scale: float | None = setting(
    None,
    "Guidance scale of super-resolution.",
    least=0,
    label="Guidance of super-resolution",
    group="guidance",
  )
  guidance_rescale: float = setting(
    0.0,
    "How far guided frames are rescaled to the contrast of unguided ones, 0 to "
    "1.",
    least=0,
    most=1,
    group="guidance",
  )
  guidance_interval: tuple[float, float] = setting(
    (0.0, 1.0),
    "LOW,HIGH: schedule times between which guidance is applied; 1 is pure "
    "noise.",
    label="Guidance from, to",
    group="interval",
  )
  oscillate_after: int = setting(
    -1,
    "Steps before guidance starts to alternate with "
    f"{option('oscillate_low')}; -1: never.",
    least=-1,
    hint="steps; -1 is never",
    group="oscillation",
  )
  oscillate_low: float = setting(
    1.0, "The lower guidance scale.", least=0, group="oscillation"
  )
  num_frames: int = setting(
    0,
    "Number of frames; 0: as trained.",
    least=0,
    label="Frames",
    hint="0: as trained",
    group="length",
  )
  window: int = setting(
    0,
    "Frames that the last stage processes at once; 0: as trained, or the whole "
    "video where that is shorter.",
    least=0,
    hint="frames processed at once; 0: as trained",
    group="length",
  )
  overlap: int = setting(
    2,
    "Minimum number of frames that neighbouring windows share.",
    least=0,
    group="length",
  )
  tile_overlap: float = setting(
    0.5,
    "Fraction of a spatial window that its neighbours share.",
    least=0,
    below=1,
    group="length",
  )
  size: tuple[int, int] | None = setting(
    None,
    "HEIGHT,WIDTH of the finished video in pixels. Default: as trained. Larger "
    "frames are processed in windows (spatial MultiDiffusion).",
  )
  window_batch: int = setting(
    1, "Windows denoised together; memory grows with it.", least=1
  )
  frame_chunk: int = setting(
    0,
    "Frames that spatial layers process at once; 0: all. Saves memory and does "
    "not change the video.",
    least=0,
  )
  noise_level: float | None = setting(
    None,
    "Noise added to the low-resolution video before super-resolution, 0 to 1.",
    least=0,
    most=1,
    group="levels",
  )
  percentile: float | None = setting(
    None,
    "Percentile of dynamic thresholding, 0 to 1.",
    least=0,
    most=1,
    group="levels",
  )
  max_value: float | None = setting(
    None,
    "Largest threshold; 1: static clipping.",
    least=1,
    label="Largest value",
    group="levels",
  )
  chunk: int = 5

  def __post_init__(self):
    check_values(self)
    low, high = self.guidance_interval
    if not 0 <= low <= high <= 1:
      raise UserError(
        option("guidance_interval", f"{low:g},{high:g}"),
        "is not an interval in [0, 1]",
        "give the lower time first, such as 0.2,0.8",
      )
    if self.size and min(self.size) < 1:
      size = ",".join(map(str, self.size))
      raise UserError(option("size", size), "must be at least 1,1")
    for name in ("grid", "ssr_grid"):
      if (grid := getattr(self, name)) is not None:
        check_grid(grid, option(name))
    if self.grid is None or self.grid in ("log_snr", "karras"):
      return
    unused = {"log_snr_min", "log_snr_max"}
    if parse_levels(self.grid) is not None:
      unused.add("shift")
    for name in sorted(unused):
      if getattr(self, name) is not None:
        raise UserError(
          option(name),
          f"changes nothing with {option('grid')}={self.grid}",
          f"leave it out, or use {option('grid')}=log_snr",
        )

  def of(self, slot: str, defaults: SamplingConfig) -> SamplingConfig:
    """Settings of 'base' or 'ssr': these, completed by the stage's defaults."""
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(defaults)}
    if slot == "ssr":
      own |= dict.fromkeys(("log_snr_min", "log_snr_max", "shift"))
      is_name = self.grid is not None and parse_levels(self.grid) is None
      own["grid"] = self.ssr_grid or (self.grid if is_name else None)
      own["guidance_scale"] = self.ssr_guidance_scale
      own["steps"] = self.ssr_steps
    levels = own["grid"] and parse_levels(own["grid"])
    if own["steps"] is None:
      own["steps"] = len(levels) if levels else self.steps
    return dataclasses.replace(
      defaults, **{k: v for k, v in own.items() if v is not None}
    )


DEFAULT_SETTINGS = Settings()
