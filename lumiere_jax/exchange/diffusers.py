"""DeepFloyd IF's stages as folders of diffusers, in and out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
import sys
from typing import Any

from lumiere_jax.exchange import scheduler as schedulers
from lumiere_jax.exchange.carried import Carried, progress, watched
from lumiere_jax.io import safetensors
from lumiere_jax.io.atomic import require_space, write_json
from lumiere_jax.io.lazy import Lazy
from lumiere_jax.io.published import open_weights, read_json
from lumiere_jax.models.unet_diffusers import from_diffusers, to_diffusers
from lumiere_jax.models.unet_diffusers_config import (
  config_from_diffusers,
  config_to_diffusers,
)
from lumiere_jax.pipelines.stage import StageConfig, VideoConfig
from lumiere_jax.typing import UserError

STEM = "diffusion_pytorch_model"
SHARD_BYTES = 10 * 10**9
"""The largest file that is written, as diffusers has it."""
# IF-II takes 64 to 256 pixels; its config.json does not say so.
_UPSCALE = 4


def read_stage(
  src: Path, *, variant: str = "", scheduler: str = "", licence: str = ""
) -> Carried:
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
  diffusion, sampling = schedulers.from_scheduler(
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
  return Carried(
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


def write_stage(stage: Carried, folder: Path) -> list[Path]:
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
  scheduler = schedulers.to_scheduler(config)
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
    f"{unet}: no {name} in it or beside it; taken to be DeepFloyd IF's own "
    "(give --scheduler=FILE for another)",
    file=sys.stderr,
  )
  cap = {"sample_max_value": 1.0} if upscales else {}
  return schedulers.IF | cap, "DeepFloyd IF's scheduler"


def _resolution(content: Mapping[str, Any], unet: Path) -> tuple[int, int]:
  size = content.get("sample_size")
  sides = size if isinstance(size, list) else [size, size]
  if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
    raise UserError(
      f"{unet / 'config.json'}: sample_size={size!r} is no size in pixels; "
      "write in the one it was trained on"
    )
  return tuple(sides)


def _sample_size(video: VideoConfig) -> int | list[int]:
  height, width = video.resolution
  return height if height == width else [height, width]


def _shards(tensors: Mapping[str, Lazy], most: int) -> Iterator[dict]:
  """Parts of at most so many bytes, a larger tensor by itself."""
  part, size = {}, 0
  for name, tensor in tensors.items():
    if part and size + tensor.nbytes > most:
      yield part
      part, size = {}, 0
    part[name] = tensor
    size += tensor.nbytes
  yield part
