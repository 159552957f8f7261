"""A stage of the cascade: its configs, and its network as a Denoiser."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from lumiere_jax.diffusion.process import KINDS, Denoiser, Prediction, predict
from lumiere_jax.diffusion.schedule import SCHEDULES, Schedule, make_schedule
from lumiere_jax.models.inflate import unflatten
from lumiere_jax.models.unet import UNet, UNetConfig
from lumiere_jax.typing import Cond, FlatParams, UserError, build, check_choice

NULL_TEXTS = ("zeros", "empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """The process a stage was trained on.

  Attributes:
    schedule: name of a schedule.
    shift: added to its log-SNR (2 log(base / resolution) for large pictures).
    prediction: what the network puts out: 'eps', 'v' or 'x0'.
    caption_dropout: probability of training without the caption.
    null_text: what "no caption" is: 'zeros' (Imagen) or 'empty' (IF: the
      embedding of the empty caption).
    max_noise_level: super-resolution: the low-resolution video is noised at
      schedule times up to this in training (Imagen's aug_level).
  """

  schedule: str = "cosine"
  shift: float = 0.0
  prediction: str = "v"
  caption_dropout: float = 0.1
  null_text: str = "zeros"
  max_noise_level: float = 0.5

  def __post_init__(self):
    known = {
      "schedule": SCHEDULES,
      "prediction": KINDS,
      "null_text": NULL_TEXTS,
    }
    for name, options in known.items():
      check_choice(f"config.diffusion.{name}", getattr(self, name), options)
    for name in ("caption_dropout", "max_noise_level"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(
          f"config.diffusion.{name}={getattr(self, name)} is not in [0, 1]"
        )

  def make_schedule(self) -> Schedule:
    """The schedule as an object."""
    shift = {"shift": self.shift} if self.shift else {}
    return make_schedule(self.schedule, **shift)


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
class StageConfig:
  """What sampling from a stage needs to know besides its weights."""

  model: UNetConfig
  diffusion: DiffusionConfig
  video: VideoConfig

  @classmethod
  def from_meta(cls, meta: Mapping[str, Any], where: str) -> "StageConfig":
    """From bundle.json.

    Raises:
      UserError: keys are unknown or missing.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    return build(cls, {k: meta[k] for k in names if k in meta}, where)

  def to_meta(self) -> dict[str, Any]:
    """For bundle.json."""
    return dataclasses.asdict(self)


def network_denoiser(
  config: StageConfig, params: FlatParams, *, bypass_temporal: bool = False
) -> Denoiser:
  """The network with its weights as a Denoiser."""
  network = UNet(config.model)
  schedule = config.diffusion.make_schedule()
  variables = {"params": unflatten(params)}

  def denoise(z: jax.Array, log_snr: jax.Array, cond: Cond) -> Prediction:
    output = network.apply(
      variables,
      z,
      schedule.time(log_snr),
      cond,
      bypass_temporal=bypass_temporal,
    )
    return predict(config.diffusion.prediction, output, z, log_snr)

  return denoise
