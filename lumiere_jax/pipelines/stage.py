"""A stage of the cascade: its configs, and its network as a Denoiser."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lumiere_jax.diffusion.choices import check_unit
from lumiere_jax.diffusion.loss import WEIGHTS
from lumiere_jax.diffusion.process import KINDS, Denoiser, Prediction, predict
from lumiere_jax.diffusion.schedule import SCHEDULES, Schedule, make_schedule
from lumiere_jax.models import lora
from lumiere_jax.models.inflate import unflatten
from lumiere_jax.models.unet import UNet, UNetConfig
from lumiere_jax.parallel import arrays
from lumiere_jax.parallel.sharding import shardings
from lumiere_jax.typing import Cond, FlatParams, UserError, build, check_choice

IF_SCHEDULE = "squaredcos_cap_v2"
NULL_TEXTS = ("zeros", "empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """The process a stage was trained on.

  Attributes:
    schedule: name of a schedule.
    shift: added to its log-SNR (2 log(base / resolution) for large pictures).
    prediction: what the network puts out, and the space of the loss: 'eps',
      'v' or 'x0'. A network of 6 channels adds its log-variance, and the loss
      the variational bound.
    loss_weight: of the loss by noise level: 'none' or 'min_snr'.
    min_snr_gamma: SNR above which 'min_snr' weighs x0 no heavier.
    caption_dropout: probability of training without the caption.
    null_text: what "no caption" is: 'zeros' (Imagen) or 'empty' (IF: the
      embedding of the empty caption).
    max_noise_level: super-resolution: the low-resolution video is noised at
      schedule times up to this in training (Imagen's aug_level).
  """

  schedule: str = "cosine"
  shift: float = 0.0
  prediction: str = "v"
  loss_weight: str = "none"
  min_snr_gamma: float = 5.0
  caption_dropout: float = 0.1
  null_text: str = "zeros"
  max_noise_level: float = 0.5

  def __post_init__(self):
    known = {
      "schedule": SCHEDULES,
      "prediction": KINDS,
      "loss_weight": WEIGHTS,
      "null_text": NULL_TEXTS,
    }
    for name, options in known.items():
      check_choice(f"config.diffusion.{name}", getattr(self, name), options)
    for name in ("caption_dropout", "max_noise_level"):
      check_unit(f"config.diffusion.{name}", getattr(self, name))
    if not self.min_snr_gamma > 0:
      raise UserError(
        f"config.diffusion.min_snr_gamma={self.min_snr_gamma} must be above 0"
      )

  def make_schedule(self) -> Schedule:
    """The schedule as an object."""
    return make_schedule(self.schedule, shift=self.shift)


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
    guidance_scale: 1 is the conditional model itself.
    percentile: of dynamic thresholding, in [0, 1].
    max_value: largest threshold, at least 1; 1 is static clipping.
    noise_level: super-resolution: of what it is told, in [0, 1] (Imagen: 0.1
      to 0.3).
  """

  sampler: str = "ddim"
  steps: int = 50
  guidance_scale: float = 7.0
  percentile: float = 0.95
  max_value: float = 1.5
  noise_level: float = 0.1


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

  @property
  def defaults(self) -> SamplingConfig:
    """How it is sampled unless one says otherwise."""
    if self.sampling:
      return self.sampling
    scale = 4.0 if self.video.upscale > 1 else 7.0
    return SamplingConfig(guidance_scale=scale)

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
    values = {k: meta[k] for k in names if k in meta}
    schedule = values.get("diffusion", {}).get("schedule")
    if "model" in values and schedule == IF_SCHEDULE:
      values["model"] = {"low_resolution": "corners"} | values["model"]
    return build(cls, values, where)

  def to_meta(self) -> dict[str, Any]:
    """For bundle.json."""
    return dataclasses.asdict(self)


def held(config: UNetConfig, params: FlatParams) -> FlatParams:
  """Weights, or their shapes, as sampling on a mesh holds them.

  Kernels are in the dtype that the network computes in: it would round them to
  it anyway, so nothing changes but the memory.
  """

  def hold(path: str, leaf: Any) -> Any:
    if not path.endswith("/kernel"):
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(dtype=jnp.dtype(config.dtype))
    return leaf.astype(config.dtype)

  return {path: hold(path, leaf) for path, leaf in params.items()}


def lay_out(config: UNetConfig, params: FlatParams, mesh: Mesh) -> FlatParams:
  """Weights cut up over a mesh, as `held`."""
  params = held(config, params)
  return arrays.put(params, shardings(params, mesh))


def network_denoiser(
  config: StageConfig,
  params: FlatParams,
  *,
  bypass_temporal: bool = False,
  adapter_scale: float = 1.0,
) -> Denoiser:
  """The network with its weights, and adapters among them, as a Denoiser.

  Of 6 output channels the last three are v in [-1, 1] of a learned variance,
  which says where in its range the log-variance lies (IF).
  """
  network = UNet(config.model)
  schedule = config.diffusion.make_schedule()
  weights, adapter = lora.part(params)
  variables = {"params": unflatten(weights)}

  def denoise(z: jax.Array, log_snr: jax.Array, cond: Cond) -> Prediction:
    with lora.applied(adapter, adapter_scale):
      output = network.apply(
        variables,
        z,
        schedule.time(log_snr),
        cond,
        bypass_temporal=bypass_temporal,
      )
    log_var = None
    if config.model.out_channels == 2 * z.shape[-1]:
      output, v = jnp.split(output, 2, axis=-1)
      log_var = (v.astype(jnp.float32) + 1) / 2
    return predict(config.diffusion.prediction, output, z, log_snr, log_var)

  return denoise
