"""Small random stand-ins for the weights of DeepFloyd IF and T5, laid out as
these are published, to try the commands of docs/weights.md on.

python -m tests.stand_ins --out=out/stand_ins

Writes IF-I/, IF-II/ (each `unet` and `scheduler`, in float16) and T5/
(`config.json`, two shards with their index, `spiece.model`). They know nothing.
"""

import json
from pathlib import Path
import shutil

from absl import app, flags
import jax
import numpy as np

from configs import common
from lumiere_jax.conversion.diffusers import write_stage
from lumiere_jax.conversion.lazy_stage import LazyStage
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.t5 import T5_SIZES, init_params
from lumiere_jax.models.tokenizer import default_tokenizer_path
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.stages.config import SamplingConfig, StageConfig, VideoConfig
from lumiere_jax.storage import safetensors
from tests.references.t5 import params_to_hf, write_hf

OUT = flags.DEFINE_string("out", "out/stand_ins", "Folder to write.")


def random_leaves(model: UNetConfig, seed: int, dtype=np.float16) -> dict:
  """Every leaf random, drawn by numpy: the same on every machine."""
  rng = np.random.default_rng(seed)

  def draw(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    scale = path.endswith("scale")
    fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
    std = 0.1 if len(leaf.shape) == 1 else fan_in**-0.5
    return (scale + std * rng.standard_normal(leaf.shape)).astype(dtype)

  return {k: draw(k, leaf) for k, leaf in abstract_params(model).items()}


def write_if(folder: Path, model: UNetConfig, side: int, seed: int) -> None:
  """One stage, as diffusers lays it out."""
  upscales = model.in_channels == 6
  stage = LazyStage(
    name="ssr_image" if upscales else "t2i",
    config=StageConfig(
      model=model,
      diffusion=common.IF_DIFFUSION,
      video=VideoConfig(num_frames=1, fps=16.0, resolution=(side, side)),
      sampling=SamplingConfig(max_value=1.0 if upscales else 1.5),
    ),
    leaves=random_leaves(model, seed),
    about={},
  )
  write_stage(stage, folder)


def write_t5(folder: Path) -> None:
  """An encoder, as transformers lays it out in shards."""
  folder.mkdir(parents=True, exist_ok=True)
  config = T5_SIZES["tiny"]
  tensors = params_to_hf(init_params(config))
  names = sorted(tensors)
  shards = {
    f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)
  }
  for file, own in shards.items():
    part = {name: tensors[name] for name in own}
    safetensors.save(folder / file, part, {"format": "pt"})
  where = {name: file for file, own in shards.items() for name in own}
  index = {"metadata": {}, "weight_map": where}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  write_hf(folder, config, {})
  shutil.copyfile(default_tokenizer_path(), folder / "spiece.model")


def write_all(folder: Path) -> None:
  """All three, as IF-I, IF-II and T5."""
  write_if(folder / "IF-I", common.IF_TINY, 16, 0)
  write_if(folder / "IF-II", common.IF_TINY_SSR, 64, 1)
  write_t5(folder / "T5")


def main(argv):
  del argv
  write_all(Path(OUT.value))
  print(OUT.value)


if __name__ == "__main__":
  app.run(main)
