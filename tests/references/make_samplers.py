"""Stores the trajectories of diffusers' schedulers.

.venv-parity/bin/python -m tests.references.make_samplers
"""

import json
from unittest import mock

import diffusers
import numpy as np
import torch

from tests.references import samplers

CLASSES = {
  "ddpm": ("DDPMScheduler", {"variance_type": "learned_range"}),
  "ddim": ("DDIMScheduler", {}),
  "dpmpp_2m": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
  "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
}
IF = {
  "thresholding": True,
  "dynamic_thresholding_ratio": samplers.THRESHOLD["percentile"],
  "sample_max_value": samplers.THRESHOLD["max_value"],
}


def images(video: np.ndarray) -> torch.Tensor:
  """(b, 1, h, w, c) as (b, c, h, w) in float64."""
  return torch.tensor(np.moveaxis(np.float64(video)[:, 0], -1, 1))


def video(pictures: torch.Tensor) -> np.ndarray:
  """The inverse, in float32."""
  return np.moveaxis(pictures.numpy().astype(np.float32), 1, -1)[:, None]


def make(name: str):
  """The scheduler of diffusers on the alphas of IF, in float64."""
  cls, options = CLASSES[name]
  options |= IF if name in ("ddpm", "ddim") else {}
  if cls != "DPMSolverMultistepScheduler":  # Has no such option.
    options["clip_sample"] = False
  scheduler = getattr(diffusers, cls)(
    beta_schedule="squaredcos_cap_v2", **options
  )
  scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
  if name == "dpmpp_2m":  # Spaces its steps differently.
    stride = 1000 // samplers.STEPS
    steps = list(range(0, 1000, stride))[::-1]
    scheduler.set_timesteps(timesteps=steps)
  else:
    scheduler.set_timesteps(samplers.STEPS)
  if hasattr(scheduler, "sigmas"):  # Rounded to float32.
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()]
    sigmas = torch.sqrt((1 - alphas) / alphas)
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=sigmas.dtype)])
  return scheduler


def walk(name: str) -> np.ndarray:
  """z of diffusers after every step, (steps, *SHAPE)."""
  scheduler = make(name)
  if name == "heun":
    return _walk_heun(scheduler)
  # Keeps noise and x0 consistent after thresholding.
  options = {"use_clipped_model_output": True} if name == "ddim" else {}
  z, seen = images(samplers.first()), []
  for step, t in enumerate(scheduler.timesteps):
    eps, v = samplers.toy(torch, z)
    output = torch.cat([eps, v], dim=1) if name == "ddpm" else eps
    draw = lambda *_, step=step, **__: images(samplers.noise(step))
    place = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with mock.patch(place, draw):
      z = scheduler.step(output, t, z, **options).prev_sample
    seen.append(video(z))
  return np.stack(seen)


def _walk_heun(scheduler) -> np.ndarray:
  """Its samples are z / alpha, and it evaluates twice per step."""
  scale = lambda i: torch.sqrt(1 + scheduler.sigmas[i] ** 2)
  x, seen = images(samplers.first()) * scale(0), []
  last = len(scheduler.timesteps) - 1
  for i, t in enumerate(scheduler.timesteps):
    eps, _ = samplers.toy(torch, scheduler.scale_model_input(x, t))
    x = scheduler.step(eps, t, x).prev_sample
    if i % 2 or i == last:  # Others are ends of Euler steps.
      seen.append(video(x / scale(i + 1)))
  return np.stack(seen)


def main() -> None:
  """Writes all references."""
  samplers.FOLDER.mkdir(exist_ok=True)
  for name in samplers.NAMES:
    np.save(samplers.FOLDER / f"{name}.npy", walk(name))
  made_with = {m.__name__: m.__version__ for m in (torch, diffusers, np)}
  text = json.dumps({"made_with": made_with, "seeds": samplers.SEEDS}, indent=1)
  (samplers.FOLDER / "made.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
