"""Configs of the stages of the cascade, and the table of their parents."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from jaxtyping import Float
import numpy as np

from lumiere_jax.diffusion.loss import WEIGHTS
from lumiere_jax.diffusion.noise_levels import (
  DISTRIBUTIONS,
  LIMIT,
  NoiseDistribution,
  as_distribution,
  check_grid,
  decisive_log_snr,
  noisiest,
  sampling_levels,
)
from lumiere_jax.diffusion.prediction import KINDS
from lumiere_jax.diffusion.schedules import SCHEDULES, Schedule, make_schedule
from lumiere_jax.errors import UserError, build, check_choice, check_least
from lumiere_jax.models.config import (
  ExecutionConfig,
  UNetConfig,
  move_execution,
)

IF_SCHEDULE = "squaredcos_cap_v2"
NULL_TEXTS = ("zeros", "empty")
AUTO = "auto"

LOG_SNR_LIMIT = 40.0
"""Largest |log-SNR| of sampling levels; beyond, float32 makes no difference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """The diffusion process that a stage was trained on.

  Attributes:
    schedule: name of the schedule of training times, of grids even in time, and
      of the times `strength` and `guidance_interval`. The network embeds times
      of another one, `model.noise_embedding`.
    noise: the distribution of log-SNR in training: 'schedule' (uniform in its
      time), 'logit_normal' (SD3), 'normal' (EDM) or 'uniform'.
    noise_mean: of log(sigma / alpha), for 'logit_normal' (SD3: 0) and 'normal'
      (EDM's P_mean: -1.2).
    noise_std: of the same (SD3: 1; EDM's P_std: 1.2).
    log_snr_min: noisiest end of 'uniform'.
    log_snr_max: cleanest end of 'uniform'.
    shift: added to the log-SNR in training; negative for more noise. 'auto' is
      computed from frames and pixels relative to the parent model, see
      `noise_levels.auto_shift`; bundles hold the number.
    prediction: output of the network and space of the loss: 'eps', 'v' or 'x0'.
      A network of 6 channels also predicts a log-variance, and the variational
      bound is added to the loss.
    loss_weight: weighting by noise level: 'none', 'min_snr', or 'v' for the
      weighting of the v loss.
    min_snr_gamma: the largest weight of x0 for 'min_snr' and 'v'.
    caption_dropout: probability of training without the caption.
    null_text: what "no caption" is: 'zeros' (Imagen) or 'empty' (IF: the
      embedding of the empty caption).
    max_noise_level: super-resolution: largest time, of `model.noise_embedding`,
      of the noise on the low-resolution video in training (Imagen's aug_level).
  """

  schedule: str = "cosine"
  noise: str = "schedule"
  noise_mean: float = 0.0
  noise_std: float = 1.0
  log_snr_min: float = -10.0
  log_snr_max: float = 10.0
  shift: float | str = 0.0
  prediction: str = "v"
  loss_weight: str = "none"
  min_snr_gamma: float = 5.0
  caption_dropout: float = 0.1
  null_text: str = "zeros"
  max_noise_level: float = 0.5

  def __post_init__(self):
    where = "config.diffusion"
    for name, known in {
      "schedule": SCHEDULES,
      "noise": DISTRIBUTIONS,
      "prediction": KINDS,
      "loss_weight": WEIGHTS,
      "null_text": NULL_TEXTS,
    }.items():
      check_choice(f"{where}.{name}", getattr(self, name), known)
    fractions = ("caption_dropout", "max_noise_level")
    check_least(self, where, fractions, least=0, most=1)
    check_least(self, where, ("min_snr_gamma", "noise_std"), above=0)
    if not self.log_snr_min < self.log_snr_max:
      raise UserError(
        f"{where}.log_snr_min={self.log_snr_min:g}",
        f"is not below log_snr_max={self.log_snr_max:g}",
        "give a smaller log_snr_min",
      )
    is_number = isinstance(self.shift, int | float)
    if self.shift != AUTO and not (is_number and abs(self.shift) <= LIMIT):
      raise UserError(
        f"{where}.shift={self.shift!r}",
        f"is neither {AUTO!r} nor a number from {-LIMIT:g} to {LIMIT:g}",
        "0 is no shift, below 0 is more noise",
      )
    normal, uniform = ("logit_normal", "normal"), ("uniform",)
    for name, kinds in {
      "noise_mean": normal,
      "noise_std": normal,
      "log_snr_min": uniform,
      "log_snr_max": uniform,
    }.items():
      value, default = getattr(self, name), getattr(type(self), name)
      if self.noise not in kinds and value != default:
        raise UserError(
          f"{where}.{name}={value:g}",
          f"has no effect with noise={self.noise!r}",
          f"set {where}.noise={kinds[0]!r} too",
        )

  def make_schedule(self) -> Schedule:
    """The schedule, with the shift of training."""
    return make_schedule(self.schedule, shift=float(self.shift))

  def make_noise(self) -> NoiseDistribution:
    """The distribution of noise levels in training."""
    return as_distribution(
      self.noise,
      schedule=make_schedule(self.schedule),
      mean=self.noise_mean,
      std=self.noise_std,
      shift=float(self.shift),
      low=self.log_snr_min,
      high=self.log_snr_max,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig:
  """The clips of a stage.

  Attributes:
    num_frames: of training clips; 1 for an image model.
    fps: frames per second.
    resolution: (height, width) of whole frames in pixels.
    upscale: super-resolution factor; 1 for a base model.
  """

  num_frames: int
  fps: float
  resolution: tuple[int, int]
  upscale: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """Default sampling settings of a stage.

  Attributes:
    sampler: 'ddpm', 'ddim', 'dpmpp_2m' or 'heun'.
    steps: sampling steps.
    grid: noise levels of the steps: 'log_snr', 'karras', 'trailing' or
      'schedule' (see `noise_levels.sampling_levels`), or a list of log-SNRs,
      '-inf,-8,-4,0,4'.
    log_snr_min: first level of 'log_snr' and 'karras' after pure noise; None:
      2 below `noise_levels.decisive_log_snr`.
    log_snr_max: last level of 'log_snr' and 'karras'.
    shift: added to the levels of the grid.
    guidance_scale: 1 is the conditional model without guidance.
    percentile: of dynamic thresholding, in [0, 1].
    max_value: largest threshold, at least 1; 1 is static clipping.
    noise_level: super-resolution: of the low-resolution video, in [0, 1]
      (Imagen: 0.1 to 0.3).
  """

  sampler: str = "ddim"
  steps: int = 50
  grid: str = "log_snr"
  log_snr_min: float | None = None
  log_snr_max: float = 6.0
  shift: float = 0.0
  guidance_scale: float = 7.0
  percentile: float = 0.95
  max_value: float = 1.5
  noise_level: float = 0.1

  def __post_init__(self):
    check_grid(self.grid, "config.defaults.grid")
    names = ["log_snr_max", "shift"]
    names += ["log_snr_min"] if self.log_snr_min is not None else []
    limits = {"least": -LOG_SNR_LIMIT, "most": LOG_SNR_LIMIT}
    check_least(self, "config.defaults", names, **limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """Everything that sampling from a stage needs besides its weights.

  Attributes:
    model: the network.
    diffusion: the process it was trained on.
    video: the clips it generates.
    sampling: default sampling settings; None: see `defaults`.
    execution: how the network is computed.
  """

  model: UNetConfig
  diffusion: DiffusionConfig
  video: VideoConfig
  sampling: SamplingConfig | None = None
  execution: ExecutionConfig = ExecutionConfig()

  def __post_init__(self):
    self.execution.check_levels(len(self.model.channels))
    check_choice(
      "config.model.noise_embedding", self.model.noise_embedding, SCHEDULES
    )

  @property
  def defaults(self) -> SamplingConfig:
    """Default sampling settings.

    The sampler is of second order: a first-order one loses 7% of the standard
    deviation of shared content in 50 steps (docs/noise.md).
    """
    if self.sampling:
      return self.sampling
    scale = 4.0 if self.video.upscale > 1 else 7.0
    return SamplingConfig(sampler="dpmpp_2m", guidance_scale=scale)

  def levels(
    self, sampling: SamplingConfig, num_frames: int = 0
  ) -> Float[np.ndarray, "n"]:
    """The noise levels of sampling.

    Networks that predict v or x0 start from pure noise. From eps, x0 is
    undefined there, so that these start at the noisiest level of training.
    `num_frames` is that of the video, or of a window; 0: as trained.

    Returns:
      (steps + 1,) log-SNR, increasing; the last one is +inf.
    """
    low = sampling.log_snr_min
    if low is None:
      frames = num_frames or self.video.num_frames
      pixels = math.prod(self.video.resolution)
      low = decisive_log_snr(frames, pixels) - 2
    is_eps = self.diffusion.prediction == "eps"
    return sampling_levels(
      sampling.grid,
      sampling.steps,
      schedule=self.diffusion.make_schedule(),
      start=noisiest(self.diffusion.make_noise()) if is_eps else -math.inf,
      low=low,
      high=sampling.log_snr_max,
      shift=sampling.shift,
    )

  @property
  def embedding_schedule(self) -> Schedule:
    """The schedule of embedded times: of the noisy video and `noise_level`."""
    return make_schedule(
      self.model.noise_embedding, shift=self.model.noise_embedding_shift
    )

  def as_image(self) -> "StageConfig":
    """The image stage that this stage was inflated from, or the same."""
    return dataclasses.replace(
      self,
      model=dataclasses.replace(self.model, temporal=None),
      video=dataclasses.replace(self.video, num_frames=1),
    )

  @classmethod
  def from_meta(cls, meta: Mapping[str, Any], where: str) -> "StageConfig":
    """From bundle.json of any format version."""
    names = [f.name for f in dataclasses.fields(cls)]
    known = {k: meta[k] for k in names if k in meta}
    return build(cls, move_execution(upgrade_format_1(known)), where)

  def to_meta(self) -> dict[str, Any]:
    """For bundle.json."""
    return dataclasses.asdict(self)


def upgrade_format_1(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the keys that a stage's config of format 1 does not have.

  The network embedded times of the stage's schedule, including its shift.
  Networks on IF's schedule up-sampled with aligned corners, and its image
  models were sampled on the schedule's own grid.
  """
  model, diffusion = meta.get("model"), meta.get("diffusion")
  if not model or not diffusion:
    return dict(meta)
  schedule = diffusion.get("schedule", "cosine")
  implied = {
    "noise_embedding": schedule,
    "noise_embedding_shift": diffusion.get("shift", 0.0),
    "low_resolution": "corners" if schedule == IF_SCHEDULE else "half_pixel",
  }
  upgraded = {**meta, "model": {**implied, **model}}
  is_if = schedule == IF_SCHEDULE and not model.get("temporal")
  if is_if and meta.get("sampling"):
    upgraded["sampling"] = {"grid": "schedule", **meta["sampling"]}
  return upgraded


FAMILIES = {"base": ("t2i", "base", "conditional"), "ssr": ("ssr_image", "ssr")}
"""Slot of the cascade -> its stages, each trained from the one before it.

The first is an image model; the others are inflated from it and share its
spatial layers. The tables below follow from this one.
"""

PARENTS = {
  stage: parent
  for names in FAMILIES.values()
  for parent, stage in zip((None, *names), names, strict=False)
}
"""Stage -> the stage that it starts from; None for image models."""

SLOT_OF = {stage: slot for slot, names in FAMILIES.items() for stage in names}
"""Stage -> the slot of the cascade that it can fill."""

IMAGE_STAGES = tuple(names[0] for names in FAMILIES.values())

SLOTS = {slot: (*names[1:], names[0]) for slot, names in FAMILIES.items()}
"""Slot -> its stages by preference: image models come last, as they generate
every frame independently."""

CONDITIONAL = "conditional"
"""The stage that also takes a masked video and its mask."""


def descendants(stage: str) -> tuple[str, ...]:
  """The stages trained from this one, directly or indirectly."""
  names = FAMILIES[SLOT_OF[stage]]
  return names[names.index(stage) + 1 :]
