"""Our U-Net against DeepFloyd IF's in diffusers, with copied random weights."""

import dataclasses
import functools

import einops
import jax
import numpy as np
import pytest

from configs import common
from lumiere_jax.models.inflate import unflatten
from lumiere_jax.models.unet import UNet, UNetConfig
from lumiere_jax.models.unet_diffusers import from_diffusers
from lumiere_jax.models.unet_diffusers_config import config_to_diffusers
from lumiere_jax.typing import Cond

pytestmark = pytest.mark.parity

STEPS = np.array([0, 1, 500, 999])
FRAMES = 2
# At least two channels to a group: a norm of one would hide the bias before.
IF_I = UNetConfig(
  channels=(64, 96, 128),
  num_res_blocks=(1, 2, 1),
  attention=("none", "self", "self"),
  text_dim=48,
  text_channels=128,
  pool_heads=8,
  head_dim=16,
  out_channels=6,
  mask_text=False,
)
IF_II = dataclasses.replace(
  IF_I,
  channels=(64, 64, 96, 128),
  num_res_blocks=(1, 2, 1, 2),
  attention=("none", "none", "self", "self"),
  in_channels=6,
  noise_conditioned=True,
  activate_embedding_once=True,
  skip_scale=0.7071,
)
CONFIGS = {
  "IF-I": IF_I,
  "IF-II": IF_II,
  "IF-I, text alone": dataclasses.replace(
    IF_I, attention=("none", "cross", "cross")
  ),
  "IF-II, text alone": dataclasses.replace(
    IF_II, attention=("none", "none", "none", "cross")
  ),
  "every kind": dataclasses.replace(IF_I, attention=("self", "cross", "self")),
}
PUBLISHED = {
  "IF-I-XL": dataclasses.replace(common.IF_I_XL, out_channels=6),
  "IF-II-L": dataclasses.replace(
    common.SSR_1024,
    attention=("none", "none", "none", "self", "self"),
    out_channels=6,
  ),
}


def _model(config):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  return torch, functools.partial(
    diffusers.UNet2DConditionModel, **config_to_diffusers(config, 64)
  )


def _randomise(torch, model):
  """Random weights, also where the model starts from zeros and ones.

  The text and the first convolution come out small, so that the epsilons of
  the norms behind them matter.
  """
  torch.manual_seed(0)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if value.ndim > 1:
        value.normal_(std=value[0].numel() ** -0.5)
      else:
        value.normal_(mean=float("norm" in name and "weight" in name), std=0.3)
      if name.startswith(("conv_in", "encoder_hid_proj")):
        value.mul_(0.01)


def _inputs(config, seed=0):
  """Videos that are wider than high, one sample for each of STEPS."""
  rng = np.random.default_rng(seed)
  samples, scale = len(STEPS), 2 ** (len(config.channels) - 1)
  size = (samples, FRAMES, 2 * scale, 3 * scale)
  video = rng.standard_normal((*size, config.in_channels), np.float32)
  text = rng.standard_normal((samples, 7, config.text_dim), np.float32)
  return video, 0.01 * text, rng.permutation(STEPS)


def _ours(config, params, video, text, noise_steps):
  cond = Cond(
    text=text, frames=video[..., 3:], noise_level=noise_steps / np.float32(1e3)
  )
  network = jax.jit(UNet(config).apply)
  time = STEPS / np.float32(1e3)
  return network({"params": unflatten(params)}, video[..., :3], time, cond)


def _theirs(torch, model, video, text, noise_steps):
  per_frame = lambda x: torch.tensor(np.repeat(x, FRAMES, axis=0))
  images = einops.rearrange(video, "b t h w c -> (b t) c h w")
  with torch.no_grad():
    out = model(
      torch.tensor(images),
      per_frame(STEPS),
      per_frame(text),
      class_labels=per_frame(noise_steps),
    ).sample.numpy()
  return einops.rearrange(out, "(b t) c h w -> b t h w c", t=FRAMES)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_unet_agrees_with_diffusers(config):
  torch, build = _model(config)
  model = build().eval()
  _randomise(torch, model)
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  params = from_diffusers(state, config, "model")
  inputs = _inputs(config)
  ours = np.asarray(_ours(config, params, *inputs))
  theirs = _theirs(torch, model, *inputs)
  assert ours.shape == theirs.shape
  error = np.abs(ours - theirs).max((1, 2, 3, 4)) / theirs.std()
  print("largest differences, in standard deviations of the output:")
  print(*(f"step {k}: {e:.1e}" for k, e in zip(STEPS, error, strict=True)))
  assert error.max() < 1e-4


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_models_have_our_leaves(config):
  """At full size, at no memory: every tensor has one place in ours."""
  torch, build = _model(config)
  with torch.device("meta"):
    model = build()
  state = {
    name: jax.ShapeDtypeStruct(tuple(x.shape), np.float32)
    for name, x in model.state_dict().items()
  }
  mapped = jax.eval_shape(
    functools.partial(params_from_diffusers, config=config), state
  )
  assert mapped == abstract_leaves(config)
