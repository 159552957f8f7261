"""Stores the outputs of DeepFloyd IF's networks and pipelines in diffusers.

.venv-parity/bin/python -m tests.references.make_if

Weights are not stored: script and tests draw the same ones.
"""

import contextlib
import json
from pathlib import Path
import tempfile
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
import transformers

from lumiere_jax.models.caption_cleaning import CLEANINGS
from tests.references import t5, trajectories, unets

MADE_WITH = {
  m.__name__: m.__version__ for m in (torch, transformers, diffusers, np)
}


def unet(config: dict[str, Any], seed: int):
  """The network of diffusers with random weights, and their shapes."""
  model = diffusers.UNet2DConditionModel.from_config(config).eval()
  shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
  drawn = unets.weights(shapes, seed)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
  return model, shapes


def output(model, config: dict[str, Any]) -> np.ndarray:
  """The output of the network for `unets.inputs`: (b, h, w, c)."""
  picture, text, noise_steps = unets.inputs(config)
  with torch.no_grad():
    out = model(
      torch.from_numpy(np.moveaxis(picture, -1, 1).copy()),
      torch.from_numpy(unets.STEPS),
      torch.from_numpy(text),
      class_labels=torch.from_numpy(noise_steps),
    ).sample.numpy()
  return np.moveaxis(out, 1, -1)


def text_features() -> tuple[torch.Tensor, torch.Tensor]:
  """Features of the prompts and of empty ones, (b, 77, e) each."""
  config = transformers.T5Config(**t5.hf_config(trajectories.T5))
  encoder = transformers.T5EncoderModel(config).eval()
  tensors = trajectories.t5_tensors()
  tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
  encoder.load_state_dict(
    {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
  )
  clean = CLEANINGS["if"]
  texts = [clean(prompt) for prompt in trajectories.PROMPTS]
  with torch.no_grad():
    encode = lambda texts: (
      encoder(
        *(torch.from_numpy(x).long() for x in trajectories.tokens(texts))
      ).last_hidden_state
    )
    return encode(texts), encode([""] * len(texts))


@contextlib.contextmanager
def given_noise(stage: str):
  """Within it, pipelines draw `trajectories.noises`, all of them, in order."""
  left = trajectories.noises(stage)

  def draw(shape, **_):
    noise = np.moveaxis(left.pop(0), -1, 1).copy()
    assert noise.shape == tuple(shape)
    return torch.from_numpy(noise)

  module = "superresolution" if stage == "IF-II" else ""
  places = [
    "diffusers.pipelines.deepfloyd_if.pipeline_if"
    + (f"_{module}" if module else ""),
    "diffusers.schedulers.scheduling_ddpm",
  ]
  with contextlib.ExitStack() as stack:
    for place in places:
      stack.enter_context(mock.patch(f"{place}.randn_tensor", draw))
    yield
  assert not left


def pipeline_of(stage: str, folder: Path):
  """The pipeline of diffusers for a stage, loaded from a folder."""
  cls = diffusers.IFPipeline
  options = {}
  if stage == "IF-II":
    cls = diffusers.IFSuperResolutionPipeline
    options["image_noising_scheduler"] = diffusers.DDPMScheduler.from_config(
      trajectories.SCHEDULERS["IF-I"]
    )
  pipeline = cls(
    tokenizer=None,
    text_encoder=None,
    unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
    scheduler=diffusers.DDPMScheduler.from_pretrained(folder / "scheduler"),
    safety_checker=None,
    feature_extractor=None,
    watermarker=None,
    requires_safety_checker=False,
    **options,
  )
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def write_stage(stage: str, folder: Path) -> dict[str, list[int]]:
  """Writes a stage as it is published; returns the shapes of its tensors."""
  config = trajectories.STAGES[stage]
  seed = list(trajectories.STAGES).index(stage)
  _, shapes = unet(config, seed)
  unets.write_folder(
    folder, config, unets.weights(shapes, seed), trajectories.SCHEDULERS[stage]
  )
  return shapes


def trajectory(stage: str, folder: Path, image=None) -> np.ndarray:
  """z after every step, (steps, b, h, w, 3)."""
  prompt, empty = text_features()
  seen = []
  options = {}
  if image is not None:
    options = {
      "image": torch.from_numpy(np.moveaxis(image, -1, 1).copy()),
      "noise_level": trajectories.NOISE_LEVEL,
    }
  with given_noise(stage):
    pipeline_of(stage, folder)(
      prompt_embeds=prompt,
      negative_prompt_embeds=empty,
      num_inference_steps=trajectories.STEPS,
      guidance_scale=trajectories.SCALES[stage],
      output_type="pt",
      callback=lambda step, t, z: seen.append(z.numpy().copy()),
      **options,
    )
  return np.moveaxis(np.stack(seen), 2, -1)


def main() -> None:
  """Writes all references."""
  unets.FOLDER.mkdir(exist_ok=True)
  cases = {}
  for seed, (name, config) in enumerate(unets.CONFIGS.items()):
    model, shapes = unet(config, seed)
    np.save(unets.FOLDER / f"{seed}.npy", output(model, config))
    cases[name] = {"seed": seed, "shapes": shapes}
  _write(unets.FOLDER, cases)
  trajectories.FOLDER.mkdir(exist_ok=True)
  cases: dict[str, Any] = {}
  image = None
  with tempfile.TemporaryDirectory() as folder:
    for seed, stage in enumerate(trajectories.STAGES):
      shapes = write_stage(stage, Path(folder) / stage)
      seen = trajectory(stage, Path(folder) / stage, image)
      image = seen[-1]
      np.save(trajectories.FOLDER / f"{stage}.npy", seen)
      cases[stage] = {"seed": seed, "shapes": shapes}
  _write(trajectories.FOLDER, cases)


def _write(folder: Path, cases: dict[str, Any]) -> None:
  """JSON with one tensor per line."""
  text = json.dumps({"made_with": MADE_WITH, "cases": cases}, indent=1)
  lines = text.replace(",\n     ", ", ").replace("[\n     ", "[")
  (folder / "made.json").write_text(lines.replace("\n    ]", "]") + "\n")


if __name__ == "__main__":
  main()
