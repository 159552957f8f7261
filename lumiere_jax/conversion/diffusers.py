"""Reads and writes DeepFloyd IF stages as diffusers folders."""

from collections.abc import Iterator, Mapping
import math
from pathlib import Path
from typing import Any

from lumiere_jax.conversion.lazy_stage import LazyStage, progress_bar
from lumiere_jax.errors import UserError, notice, option
from lumiere_jax.models.importers.hf_checkpoint import (
  check_known,
  open_weights,
  read_json,
)
from lumiere_jax.models.importers.unet_diffusers import (
  from_diffusers,
  to_diffusers,
)
from lumiere_jax.models.importers.unet_diffusers_config import (
  config_from_diffusers,
  config_to_diffusers,
)
from lumiere_jax.stages.config import (
  DiffusionConfig,
  SamplingConfig,
  StageConfig,
  VideoConfig,
)
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import require_space, write_json
from lumiere_jax.storage.safetensors import LazyArray

_KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

# Other values of these keys are not supported. An absent key has the first
# value, which is diffusers' default or that of IF.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
  "_class_name": ("DDPMScheduler",),
  "prediction_type": tuple(_KINDS),
  "beta_schedule": ("squaredcos_cap_v2",),
  "num_train_timesteps": (1000,),
  "rescale_betas_zero_snr": (False, None),
  "steps_offset": (0, None),
  "thresholding": (False, True),
  "timestep_spacing": ("leading",),
  "trained_betas": (None,),
}

# Keys without effect on this beta schedule and class, and those checked below.
_IGNORED = {
  *("beta_start", "beta_end", "clip_sample", "clip_sample_range"),
  *("dynamic_thresholding_ratio", "sample_max_value"),
}

IF = {
  "_class_name": "DDPMScheduler",
  "_diffusers_version": "0.42.1",
  "beta_schedule": "squaredcos_cap_v2",
  "clip_sample": True,
  "dynamic_thresholding_ratio": 0.95,
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "sample_max_value": 1.5,
  "steps_offset": 0,
  "thresholding": True,
  "timestep_spacing": "leading",
  "variance_type": "learned_range",
}
"""The published scheduler of IF-I; IF-II's has a sample_max_value of 1."""

_FIX = "give the scheduler that the model was published with"


def from_scheduler(
  content: Mapping[str, Any], name: str, *, learned: bool, upscales: bool
) -> tuple[DiffusionConfig, SamplingConfig]:
  """The diffusion and sampling configs of a diffusers scheduler.

  Steps, guidance and noise level, which it lacks, are those of diffusers' IF
  pipelines.

  `content` is that of scheduler_config.json, `name` its path; `learned` says
  whether the network predicts the variance.
  """
  thresholding = content.get("thresholding", False)
  content = {"variance_type": "fixed_small", **content}
  variance = "learned_range" if learned else "fixed_small"
  supported = _SUPPORTED | {"variance_type": (variance,)}
  if not thresholding:
    # Static clipping is dynamic thresholding with a maximum of 1.
    supported |= {"clip_sample": (True,), "clip_sample_range": (1, None)}
  for key, values in supported.items():
    if (value := content.get(key, values[0])) not in values:
      known = " or ".join(map(repr, values))
      problem = f"{key}={value!r} is not supported, only {known} is"
      raise UserError(f"{name}:", problem, _FIX)
  check_known(content, {*supported, *_IGNORED}, name, _FIX)
  ratio = _number(content, name, "dynamic_thresholding_ratio", 0.995, 0, 1)
  cap = _number(content, name, "sample_max_value", 1.0, 1, math.inf)
  return (
    DiffusionConfig(
      schedule="squaredcos_cap_v2",
      prediction=_KINDS[content.get("prediction_type", "epsilon")],
      null_text="empty",
    ),
    SamplingConfig(
      sampler="ddpm",
      steps=50 if upscales else 100,
      grid="schedule",
      guidance_scale=4.0 if upscales else 7.0,
      percentile=ratio,
      max_value=cap if thresholding else 1.0,
      noise_level=0.25,
    ),
  )


def to_scheduler(config: StageConfig) -> dict[str, Any]:
  """The scheduler_config.json of a stage; a UserError if diffusers has none."""
  needed = {"noise_embedding": "squaredcos_cap_v2", "noise_embedding_shift": 0}
  if config.model.in_channels == 6:
    needed["low_resolution"] = "corners"
  for field, supported in needed.items():
    if (value := getattr(config.model, field)) != supported:
      raise UserError(
        f"config.model.{field}={value!r}",
        f"is not supported by diffusers, which needs {supported!r}",
        "export this model as a bundle",
      )
  names = {ours: theirs for theirs, ours in _KINDS.items()}
  sampling, learned = config.defaults, config.model.out_channels == 6
  return {
    **IF,
    "dynamic_thresholding_ratio": sampling.percentile,
    "prediction_type": names[config.diffusion.prediction],
    "sample_max_value": sampling.max_value,
    "variance_type": "learned_range" if learned else "fixed_small",
  }


def _number(
  content: Mapping[str, Any],
  name: str,
  key: str,
  default: float,
  least: float,
  most: float,
) -> float:
  value = content.get(key, default)
  if type(value) not in (int, float) or not least <= value <= most:
    problem = f"{key}={value!r} is not a number from {least:g} to {most:g}"
    raise UserError(f"{name}:", problem, _FIX)
  return float(value)


STEM = "diffusion_pytorch_model"
SHARD_BYTES = 10 * 10**9
"""The largest file that is written, as in diffusers."""

# IF-II takes 64 to 256 pixels; its config.json does not say so.
_UPSCALE = 4


def read_stage(
  src: Path, *, variant: str = "", scheduler: str = "", licence: str = ""
) -> LazyStage:
  """Reads a U-Net of DeepFloyd IF: `t2i`, or `ssr_image` if it upscales.

  Args:
    src: the folder of the U-Net, or of the pipeline with the subfolder `unet`.
    variant: of the weights, such as 'fp16'.
    scheduler: scheduler_config.json or its folder; '' is the one in
      `scheduler` beside the U-Net, or else that of IF, with a notice.
    licence: of the weights; '' is "not stated".
  """
  unet = src / "unet" if (src / "unet" / "config.json").is_file() else src
  content = read_json(unet / "config.json")
  model = config_from_diffusers(content, str(unet / "config.json"))
  upscales = model.in_channels == 6
  diffusion, sampling = from_scheduler(
    *_scheduler(unet, scheduler, upscales),
    learned=model.out_channels == 6,
    upscales=upscales,
  )
  leaves = from_diffusers(
    open_weights(unet, STEM, variant=variant), model, str(unet)
  )
  video = VideoConfig(
    num_frames=1,
    fps=16.0,
    resolution=_resolution(content, unet),
    upscale=_UPSCALE if upscales else 1,
  )
  return LazyStage(
    name="ssr_image" if upscales else "t2i",
    config=StageConfig(
      model=model, diffusion=diffusion, video=video, sampling=sampling
    ),
    leaves=leaves,
    about={
      "step": 0,
      "trained_on": content.get("_name_or_path") or "not stated",
      "licence": licence or "not stated",
      "imported_from": "diffusers",
    },
  )


def write_stage(stage: LazyStage, folder: Path) -> list[Path]:
  """Writes the spatial layers as `unet` and `scheduler`; returns the files.

  Tensors keep their dtype and are bit-identical to those that were read.
  """
  config = stage.config
  unet = folder / "unet"
  height, width = config.video.resolution
  size = height if height == width else [height, width]
  content = config_to_diffusers(config.model, size)
  scheduler = to_scheduler(config)
  tensors = to_diffusers(stage.leaves, config.model)
  total = sum(tensor.nbytes for tensor in tensors.values())
  unet.mkdir(parents=True, exist_ok=True)
  require_space(unet, total)
  written = []
  with progress_bar(total, "unet") as counted:
    shards = list(_shards(counted(tensors), SHARD_BYTES))
    where: dict[str, str] = {}
    for number, shard in enumerate(shards):
      name = f"{STEM}.safetensors"
      if len(shards) > 1:
        name = f"{STEM}-{number + 1:05d}-of-{len(shards):05d}.safetensors"
      where |= dict.fromkeys(shard, name)
      safetensors.save(unet / name, shard, {"format": "pt"})
      written.append(unet / name)
  about = {
    unet / "config.json": content,
    folder / "scheduler" / "scheduler_config.json": scheduler,
  }
  if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": where}
    about[unet / f"{STEM}.safetensors.index.json"] = index
  for path, values in about.items():
    write_json(path, values)
  return [*written, *about]


def _scheduler(
  unet: Path, given: str, upscales: bool
) -> tuple[Mapping[str, Any], str]:
  """A scheduler's config and its name for errors."""
  name = "scheduler_config.json"
  if given:
    path = Path(given)
    path = path / name if path.is_dir() else path
    return read_json(path), str(path)
  for place in (unet.parent / "scheduler", unet):
    if (place / name).is_file():
      return read_json(place / name), str(place / name)
  notice(
    f"{unet}: no {name} in it or beside it; using that of DeepFloyd IF "
    f"(give {option('scheduler', 'FILE')} for another)"
  )
  cap = {"sample_max_value": 1.0} if upscales else {}
  return IF | cap, "DeepFloyd IF's scheduler"


def _resolution(content: Mapping[str, Any], unet: Path) -> tuple[int, int]:
  size = content.get("sample_size")
  sides = size if isinstance(size, list) else [size, size]
  if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
    raise UserError(
      f"{unet / 'config.json'}:",
      f"sample_size={size!r} is not a size in pixels",
      "write the resolution it was trained on",
    )
  return tuple(sides)


def _shards(
  tensors: Mapping[str, LazyArray], max_bytes: int
) -> Iterator[dict[str, LazyArray]]:
  """Groups tensors up to a size; a larger tensor is a group of its own."""
  shard: dict[str, LazyArray] = {}
  size = 0
  for name, tensor in tensors.items():
    if shard and size + tensor.nbytes > max_bytes:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += tensor.nbytes
  yield shard
