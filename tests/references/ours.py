"""Our outputs for the inputs of `make_if`, from imported files."""

import json
from pathlib import Path

import jax
import numpy as np

from lumiere_jax.conversion.convert import Conversion, convert
from lumiere_jax.conversion.diffusers import read_stage
from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.inference.stage_sampler import sample_stage, traced
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.tokenizer import default_tokenizer_path
from lumiere_jax.models.unet import UNet
from lumiere_jax.training.config import TextConfig
from lumiere_jax.typing import Cond
from tests.references import t5, trajectories, unets


def output(folder: Path) -> np.ndarray:
  """The output of our imported network for `unets.inputs`: (b, h, w, c)."""
  content = json.loads((folder / "unet" / "config.json").read_text())
  picture, text, noise_steps = unets.inputs(content)
  stage = read_stage(folder)
  params = {k: np.asarray(v) for k, v in stage.leaves.items()}
  video = picture[:, None]
  cond = Cond(
    text=text,
    text_mask=np.zeros(text.shape[:2], bool),  # IF ignores it.
    frames=video[..., 3:],
    noise_level=noise_steps / np.float32(1e3),
  )
  network = jax.jit(UNet(stage.config.model).apply)
  time = unets.STEPS / np.float32(1e3)
  variables = {"params": unflatten(params)}
  return np.asarray(network(variables, video[..., :3], time, cond))[:, 0]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """The largest difference, in standard deviations of `theirs`."""
  assert ours.shape == theirs.shape
  assert theirs.std() > 1e-3
  return float(np.abs(ours - theirs).max() / theirs.std())


def write_t5(folder: Path) -> Path:
  """Writes the encoder of the trajectories as it would be published."""
  return t5.write_hf(folder, trajectories.T5, trajectories.t5_tensors())


def import_all(stages: list[Path], text_folder: Path, out: Path) -> Pipeline:
  """Converts both stages and T5 into one bundle, as a user would."""
  for folder in stages:
    convert(
      Conversion(
        source="diffusers", target="bundle", src=(str(folder),), out=str(out)
      )
    )
  text = TextConfig(tokenizer=str(default_tokenizer_path()), cleaning="if")
  convert(
    Conversion(
      source="t5",
      target="bundle",
      src=(str(text_folder),),
      out=str(out),
      text=text,
    )
  )
  return Pipeline.from_pretrained(out)


def trajectory(
  pipeline: Pipeline, slot: str, image: np.ndarray | None = None
) -> np.ndarray:
  """z of a stage after every step, (steps, b, h, w, 3).

  Args:
    pipeline: both stages.
    slot: 'base' or 'ssr'.
    image: (b, h, w, 3), low-resolution input of the second stage.
  """
  stage = pipeline.stages[slot]
  settings = Settings(steps=trajectories.STEPS, num_frames=1)
  plan = pipeline.plan(settings)[slot]
  cond, null = pipeline._text(trajectories.PROMPTS, "")[slot]
  keys = sample_keys(trajectories.SEEDS, list(pipeline.stages).index(slot))
  low = None if image is None else image[:, None]
  seen = []
  keep = lambda done, z: seen.append(np.asarray(z)[:, 0])
  sample_stage(
    plan.program,
    stage.params,
    plan.condition(cond, low, keys),
    null,
    keys,
    log_snrs=plan.log_snrs,
    guidance=traced(plan.sampling),
    chunk=1,
    callback=keep,
  )
  return np.stack(seen)


def picture(pipeline: Pipeline) -> np.ndarray:
  """Images of the whole cascade for the prompts: (b, h, w, 3)."""
  settings = Settings(steps=trajectories.STEPS, num_frames=1, chunk=1)
  return np.asarray(
    pipeline.sample(
      trajectories.PROMPTS, seed=trajectories.SEEDS, settings=settings
    )
  )[:, 0]
