"""Our U-Net on videos against that of diffusers on their frames."""

import einops
import jax
import numpy as np
import pytest

from lumiere_jax.models.importers.unet_diffusers import (
  from_diffusers,
  spatial_leaves,
)
from lumiere_jax.models.importers.unet_diffusers_config import (
  config_from_diffusers,
)
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.typing import Cond
from tests.models.importers.test_unet_diffusers import IF_I_XL, IF_II_L
from tests.references import unets

pytestmark = pytest.mark.parity
FRAMES = 2


@pytest.mark.parametrize("name", ["IF-I", "IF-II"])
def test_frames_equal_images_of_diffusers(name):
  """Text and noise level are per video, pixels per frame."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  from tests.references import make_if

  content = unets.CONFIGS[name]
  config = config_from_diffusers(content, name)
  model, _ = make_if.unet(content, 7)
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  params = from_diffusers(state, config, name)
  pictures = [unets.inputs(content, seed)[0] for seed in range(FRAMES)]
  _, text, noise_steps = unets.inputs(content)
  video = np.stack(pictures, axis=1)
  cond = Cond(
    text=text, frames=video[..., 3:], noise_level=noise_steps / np.float32(1e3)
  )
  time = unets.STEPS / np.float32(1e3)
  variables = {
    "params": unflatten({k: np.asarray(v) for k, v in params.items()})
  }
  ours = jax.jit(UNet(config).apply)(variables, video[..., :3], time, cond)
  per_frame = lambda x: torch.tensor(np.repeat(x, FRAMES, axis=0))
  images = einops.rearrange(video, "b t h w c -> (b t) c h w")
  with torch.no_grad():
    theirs = model(
      torch.tensor(images),
      per_frame(unets.STEPS),
      per_frame(text),
      class_labels=per_frame(noise_steps),
    ).sample.numpy()
  theirs = einops.rearrange(theirs, "(b t) c h w -> b t h w c", t=FRAMES)
  error = np.abs(np.asarray(ours) - theirs).max() / theirs.std()
  print(f"{name}: {error:.1e}")
  assert error < 1e-4


@pytest.mark.parametrize(
  "content", [IF_I_XL, IF_II_L], ids=["IF-I-XL", "IF-II-L"]
)
def test_published_models_have_our_leaves(content):
  """At full size, without memory: every tensor is imported once."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  with torch.device("meta"):
    model = diffusers.UNet2DConditionModel.from_config(content)
  state = {
    name: jax.ShapeDtypeStruct(tuple(x.shape), np.float32)
    for name, x in model.state_dict().items()
  }
  config = config_from_diffusers(content, "config.json")
  mapped = from_diffusers(state, config, "model")
  assert {k: x.shape for k, x in mapped.items()} == {
    k: x.shape for k, x in spatial_leaves(config).items()
  }
