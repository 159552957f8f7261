"""DeepFloyd IF's stages as folders of diffusers, in and out."""

from collections.abc import Iterator, Mapping
import math
from pathlib import Path
import sys
from typing import Any

from lumiere_jax.conversion.lazy_stage import LazyStage, progress, watched
from lumiere_jax.errors import UserError, option
from lumiere_jax.models.importers.hf_checkpoint import open_weights, read_json
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


# What other values of these mean for sampling has no counterpart here. Absent
# keys have the first value, diffusers' own default or one that IF has too.
_ONLY: dict[str, tuple[Any, ...]] = {
  "beta_schedule": ("squaredcos_cap_v2",),
  "num_train_timesteps": (1000,),
  "rescale_betas_zero_snr": (False, None),
  "steps_offset": (0, None),
  "timestep_spacing": ("leading",),
  "trained_betas": (None,),
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
"""As IF-I's is published; IF-II's has a sample_max_value of 1."""


def from_scheduler(
  content: Mapping[str, Any], name: str, *, learned: bool, upscales: bool
) -> tuple[DiffusionConfig, SamplingConfig]:
  """The process and the sampling that a scheduler's config describes.

  Steps, guidance and noise level are no part of it: they are those of
  diffusers' IF pipelines.

  Args:
    content: of scheduler_config.json.
    name: its path, for errors.
    learned: the network has a learned variance.
    upscales: it is a super-resolution model.

  Raises:
    UserError: a key has a value that has no counterpart here; it is named.
  """
  for key, values in _ONLY.items():
    _check(content, name, key, values)
  _check(content, name, "prediction_type", tuple(_KINDS), "epsilon")
  variance = ("learned_range",) if learned else ("fixed_small",)
  _check(content, name, "variance_type", variance, "fixed_small")
  if not content.get("thresholding", False):
    # Static clipping is dynamic thresholding that never goes above 1.
    _check(content, name, "clip_sample", (True,), True)
    _check(content, name, "clip_sample_range", (1, None), 1)
  thresholding = content.get("thresholding", False)
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
  """The scheduler_config.json of a stage.

  Raises:
    UserError: what its network is conditioned on has no counterpart in
      diffusers' pipelines: noise levels, or the low resolution.
  """
  needed = {"noise_embedding": "squaredcos_cap_v2", "noise_embedding_shift": 0}
  if config.model.in_channels == 6:
    needed["low_resolution"] = "corners"
  for field, only in needed.items():
    if (value := getattr(config.model, field)) != only:
      raise UserError(
        f"config.model.{field}={value!r}",
        f"has no counterpart in diffusers, which needs {only!r}",
        "this model can be kept as a bundle only",
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
    raise UserError(
      f"{name}:",
      f"{key}={value!r} is no number from {least:g} to {most:g}",
      "give the scheduler that the model was published with",
    )
  return float(value)


def _check(
  content: Mapping[str, Any],
  name: str,
  key: str,
  values: tuple[Any, ...],
  default: Any = None,
) -> None:
  absent = values[0] if default is None else default
  if (value := content.get(key, absent)) not in values:
    raise UserError(
      f"{name}:",
      f"{key}={value!r} has no counterpart here, which knows "
      f"{' or '.join(map(repr, values))}",
      "give the scheduler that the model was published with",
    )


STEM = "diffusion_pytorch_model"


SHARD_BYTES = 10 * 10**9
"""The largest file that is written, as diffusers has it."""


# IF-II takes 64 to 256 pixels; its config.json does not say so.
_UPSCALE = 4


def read_stage(
  src: Path, *, variant: str = "", scheduler: str = "", licence: str = ""
) -> LazyStage:
  """A U-Net of DeepFloyd IF: `t2i`, or `ssr_image` if it upscales.

  Args:
    src: the U-Net's folder, or the whole pipeline's, which has it as `unet`.
    variant: of the weights, such as 'fp16'.
    scheduler: scheduler_config.json or its folder; '' is the one in
      `scheduler` beside the U-Net, or else IF's own, which is said.
    licence: of the weights; '' is "not stated".

  Raises:
    UserError: files are missing or broken, or describe another network or
      process than ours can be; the file and the key or tensors are named.
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
  """Writes the spatial part as `unet` and `scheduler`; returns the files.

  The tensors are those that were read, bit for bit and in their dtype; of a
  video model, those of the image model it holds.

  Raises:
    UserError: the network or process has no counterpart in diffusers, or the
      place cannot be written or has too little room.
  """
  config = stage.config
  unet = folder / "unet"
  content = config_to_diffusers(config.model, _sample_size(config.video))
  scheduler = to_scheduler(config)
  tensors = to_diffusers(stage.leaves, config.model)
  total = sum(tensor.nbytes for tensor in tensors.values())
  unet.mkdir(parents=True, exist_ok=True)
  require_space(unet, total)
  written = []
  with progress(total, "unet") as bar:
    shards = list(_shards(watched(tensors, bar), SHARD_BYTES))
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
  """A scheduler's config and what to call it."""
  name = "scheduler_config.json"
  if given:
    path = Path(given)
    path = path / name if path.is_dir() else path
    return read_json(path), str(path)
  for place in (unet.parent / "scheduler", unet):
    if (place / name).is_file():
      return read_json(place / name), str(place / name)
  print(
    (
      f"{unet}: no {name} in it or beside it; taken to be DeepFloyd "
      f"IF's own (give {option('scheduler')}=FILE for another)"
    ),
    file=sys.stderr,
  )
  cap = {"sample_max_value": 1.0} if upscales else {}
  return IF | cap, "DeepFloyd IF's scheduler"


def _resolution(content: Mapping[str, Any], unet: Path) -> tuple[int, int]:
  size = content.get("sample_size")
  sides = size if isinstance(size, list) else [size, size]
  if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
    raise UserError(
      f"{unet / 'config.json'}:",
      f"sample_size={size!r} is no size in pixels",
      "write in the one it was trained on",
    )
  return tuple(sides)


def _sample_size(video: VideoConfig) -> int | list[int]:
  height, width = video.resolution
  return height if height == width else [height, width]


def _shards(tensors: Mapping[str, LazyArray], most: int) -> Iterator[dict]:
  """Parts of at most so many bytes, a larger tensor by itself."""
  part, size = {}, 0
  for name, tensor in tensors.items():
    if part and size + tensor.nbytes > most:
      yield part
      part, size = {}, 0
    part[name] = tensor
    size += tensor.nbytes
  yield part
