"""The configs of a stage of the cascade, and which stage starts from which."""

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
from lumiere_jax.errors import (
  UserError,
  build,
  check_choice,
  check_least,
  check_unit,
)
from lumiere_jax.models.config import UNetConfig

IF_SCHEDULE = "squaredcos_cap_v2"


NULL_TEXTS = ("zeros", "empty")


AUTO = "auto"


FARTHEST = 40.0
"""No log-SNR beyond is worth sampling at: float32 tells it from no other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """The process a stage was trained on.

  Attributes:
    schedule: name of a schedule: that training draws times of, that grids even
      in time go by, and that `strength` and `guidance_interval` are times of.
      How the network knows a noise level is `model.noise_embedding`.
    noise: the distribution of log-SNR that training draws: 'schedule' (its
      time is uniform), 'logit_normal' (SD3), 'normal' (EDM) or 'uniform'.
    noise_mean: of log(sigma / alpha), for 'logit_normal' (SD3: 0) and 'normal'
      (EDM's P_mean: -1.2).
    noise_std: of the same (SD3: 1; EDM's P_std: 1.2).
    log_snr_min: noisiest end of 'uniform'.
    log_snr_max: cleanest end of 'uniform'.
    shift: added to the log-SNRs that training draws; below 0 for more noise.
      'auto' follows from frames and pixels against those of the model it starts
      from, see `noise_levels.auto_shift`; bundles hold the number.
    prediction: what the network puts out, and the space of the loss: 'eps',
      'v' or 'x0'. A network of 6 channels adds its log-variance, and the loss
      the variational bound.
    loss_weight: of the loss by noise level: 'none', 'min_snr', or 'v' for what
      the loss of v would give it.
    min_snr_gamma: the heaviest weight of x0 by 'min_snr' or 'v'.
    caption_dropout: probability of training without the caption.
    null_text: what "no caption" is: 'zeros' (Imagen) or 'empty' (IF: the
      embedding of the empty caption).
    max_noise_level: super-resolution: the low-resolution video is noised at
      times of `model.noise_embedding` up to this in training (Imagen's
      aug_level).
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
    known = {
      "schedule": SCHEDULES,
      "noise": DISTRIBUTIONS,
      "prediction": KINDS,
      "loss_weight": WEIGHTS,
      "null_text": NULL_TEXTS,
    }
    for name, options in known.items():
      check_choice(f"config.diffusion.{name}", getattr(self, name), options)
    for name in ("caption_dropout", "max_noise_level"):
      check_unit(f"config.diffusion.{name}", getattr(self, name))
    check_least(
      self, "config.diffusion", ("min_snr_gamma", "noise_std"), above=0
    )
    if not self.log_snr_min < self.log_snr_max:
      raise UserError(
        f"config.diffusion.log_snr_min={self.log_snr_min:g}",
        f"is not below log_snr_max={self.log_snr_max:g}",
        "give a smaller log_snr_min",
      )
    number = isinstance(self.shift, int | float) and math.isfinite(self.shift)
    if self.shift != AUTO and not (number and abs(self.shift) <= LIMIT):
      raise UserError(
        f"config.diffusion.shift={self.shift!r}",
        f"is neither {AUTO!r} nor a number from {-LIMIT:g} to {LIMIT:g}",
        "0 is no shift, below 0 is more noise",
      )

    self._check_used()

  def _check_used(self) -> None:
    """Raises a UserError where a value would change nothing."""
    used = {
      "noise_mean": ("logit_normal", "normal"),
      "noise_std": ("logit_normal", "normal"),
      "log_snr_min": ("uniform",),
      "log_snr_max": ("uniform",),
    }
    defaults = {f.name: f.default for f in dataclasses.fields(self)}
    for name, kinds in used.items():
      value = getattr(self, name)
      if self.noise not in kinds and value != defaults[name]:
        raise UserError(
          f"config.diffusion.{name}={value:g}",
          f"changes nothing with noise={self.noise!r}",
          f"set config.diffusion.noise={kinds[0]!r} too",
        )

  def make_schedule(self) -> Schedule:
    """The schedule as an object, shifted as training was."""
    return make_schedule(self.schedule, shift=float(self.shift))

  def make_noise(self) -> NoiseDistribution:
    """The noise levels that training draws."""
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
    num_frames: it was trained on; 1 for an image model.
    fps: frames a second.
    resolution: (height, width) of whole frames in pixels.
    upscale: super-resolution factor; 1 for a base model.
  """

  num_frames: int
  fps: float
  resolution: tuple[int, int]
  upscale: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """How a stage is sampled unless one says otherwise.

  Attributes:
    sampler: 'ddpm', 'ddim', 'dpmpp_2m' or 'heun'.
    steps: sampling steps.
    grid: noise levels of the steps: 'log_snr', 'karras', 'trailing' or
      'schedule' (see `noise_levels.sampling_levels`), or a list of log-SNRs,
      '-inf,-8,-4,0,4'.
    log_snr_min: first level of 'log_snr' and 'karras' after pure noise; None:
      a little below where what all frames share emerges from noise.
    log_snr_max: last level of these.
    shift: added to the levels of the grid.
    guidance_scale: 1 is the conditional model itself.
    percentile: of dynamic thresholding, in [0, 1].
    max_value: largest threshold, at least 1; 1 is static clipping.
    noise_level: super-resolution: of what it is told, in [0, 1] (Imagen: 0.1
      to 0.3).
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
    for name in ("log_snr_min", "log_snr_max", "shift"):
      value = getattr(self, name)
      if value is not None and not abs(value) <= FARTHEST:
        raise UserError(
          f"config.defaults.{name}={value}",
          f"must be from {-FARTHEST:g} to {FARTHEST:g}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """What sampling from a stage needs to know besides its weights.

  Attributes:
    model: its network.
    diffusion: the process it was trained on.
    video: the clips it makes.
    sampling: how it is best sampled; None: see `defaults`.
  """

  model: UNetConfig
  diffusion: DiffusionConfig
  video: VideoConfig
  sampling: SamplingConfig | None = None

  def __post_init__(self):
    check_choice(
      "config.model.noise_embedding", self.model.noise_embedding, SCHEDULES
    )

  @property
  def defaults(self) -> SamplingConfig:
    """How it is sampled unless one says otherwise.

    A second-order sampler: of what all frames share, one of first order loses
    7% of the spread in 50 steps (docs/noise.md).
    """
    if self.sampling:
      return self.sampling
    scale = 4.0 if self.video.upscale > 1 else 7.0
    return SamplingConfig(sampler="dpmpp_2m", guidance_scale=scale)

  def levels(
    self, sampling: SamplingConfig, num_frames: int = 0
  ) -> Float[np.ndarray, "n"]:
    """The noise levels that it is sampled at.

    Networks that predict v or x0 start from pure noise; one that predicts eps
    would have to divide by no signal, and starts at the noisiest level it was
    taught.

    Args:
      sampling: how.
      num_frames: that the network sees at once; 0: as trained.

    Returns:
      (steps + 1,) log-SNR, rising; the last one is +inf.

    Raises:
      UserError: too few or too many steps, or ends that do not fit.
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
    """What the network knows noise levels by: as times of this schedule.

    That of the noisy video, and `noise_level`, that of the low-resolution one.
    """
    return make_schedule(
      self.model.noise_embedding, shift=self.model.noise_embedding_shift
    )

  def as_image(self) -> "StageConfig":
    """The image stage that a video stage was inflated from, or itself."""
    return dataclasses.replace(
      self,
      model=dataclasses.replace(self.model, temporal=None),
      video=dataclasses.replace(self.video, num_frames=1),
    )

  @classmethod
  def from_meta(cls, meta: Mapping[str, Any], where: str) -> "StageConfig":
    """From bundle.json.

    One written before `low_resolution` was recorded does not say it: then it
    is 'corners' for networks on DeepFloyd IF's schedule.

    Raises:
      UserError: keys are unknown or missing.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    known = {k: meta[k] for k in names if k in meta}
    return build(cls, upgrade_format_1(known), where)

  def to_meta(self) -> dict[str, Any]:
    """For bundle.json."""
    return dataclasses.asdict(self)


def upgrade_format_1(meta: Mapping[str, Any]) -> dict[str, Any]:
  """A stage's config with what it implied before that had a name.

  The network was conditioned on times of the stage's schedule, shift included.
  IF's pictures were sampled as its authors do, and enlarged with corners kept;
  all else gets the grid and the geometry of today.
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
  whole = {**meta, "model": {**implied, **model}}
  is_if = schedule == IF_SCHEDULE and not model.get("temporal")
  if is_if and meta.get("sampling"):
    whole["sampling"] = {"grid": "schedule", **meta["sampling"]}
  return whole


FAMILIES = {
  "base": ("t2i", "base", "conditional"),
  "ssr": ("ssr_image", "ssr"),
}
"""Slot of the cascade -> its stages, each trained from the one before it.

The first of each is an image model; the others are inflated from it and share
its spatial layers. The tables below are views of this one.
"""


PARENTS = {
  stage: parent
  for names in FAMILIES.values()
  for parent, stage in zip((None, *names), names, strict=False)
}
"""Stage -> the stage it starts from; None: an image model, from nothing."""


SLOT_OF = {stage: slot for slot, names in FAMILIES.items() for stage in names}
"""Stage -> the slot of the cascade that it can fill."""


IMAGE_STAGES = tuple(names[0] for names in FAMILIES.values())


SLOTS = {slot: (*names[1:], names[0]) for slot, names in FAMILIES.items()}
"""Slot -> its stages in the order sampling prefers them: video models first.
An image model generates every frame on its own."""


CONDITIONAL = "conditional"
"""The stage that also takes a masked video and its mask."""


def descendants(stage: str) -> tuple[str, ...]:
  """The stages trained from this one, directly or not: they hold all of it."""
  names = FAMILIES[SLOT_OF[stage]]
  return names[names.index(stage) + 1 :]
