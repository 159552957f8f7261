"""LoRA of DeepFloyd IF: files of diffusers and PEFT, merged here and there."""

import functools
import json

import jax
import numpy as np
import pytest

from lumiere_jax.inference.adapters import apply_adapters, read_adapter
from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers.unet_diffusers import (
  from_diffusers,
  to_diffusers,
)
from lumiere_jax.models.importers.unet_diffusers_config import (
  config_to_diffusers,
)
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.typing import Cond

pytestmark = pytest.mark.parity
SCALE = 0.7

# Every kind of layer; the middle level has cross attention only.
CONFIG = UNetConfig(
  channels=(64, 64, 96),
  num_res_blocks=(1, 1, 1),
  attention=("none", "cross", "self"),
  text_dim=48,
  text_channels=64,
  pool_heads=8,
  head_dim=16,
  in_channels=6,
  out_channels=6,
  noise_conditioned=True,
  activate_embedding_once=True,
  skip_scale=0.7071,
  mask_text=False,
)

STEPS = np.array([3, 700])
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")

OLD = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers that diffusers renames from its old attention processors."""


def _network():
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  pytest.importorskip("peft")
  torch.manual_seed(0)
  unet = diffusers.UNet2DConditionModel(**config_to_diffusers(CONFIG, 64))
  with torch.no_grad():
    for name, value in unet.named_parameters():
      if value.ndim > 1:
        value.normal_(std=value[0].numel() ** -0.5)
      else:
        value.normal_(mean=float("norm" in name and "weight" in name), std=0.3)
  return unet.eval()


def _layers(unet, ends=()):
  """Names of all dense layers and convolutions, or of some."""
  return [
    name.removesuffix(".weight")
    for name, value in unet.named_parameters()
    if name.endswith(".weight") and value.ndim > 1
    if not ends or name.removesuffix(".weight").endswith(ends)
  ]


def _settings(unet, ends=(), **settings):
  import peft

  return peft.LoraConfig(
    r=4, init_lora_weights=False, target_modules=_layers(unet, ends), **settings
  )


def _adapted(ends=(), **settings):
  unet = _network()
  unet.add_adapter(_settings(unet, ends, **settings))
  return unet


def _state(unet):
  from peft.utils import get_peft_model_state_dict

  return get_peft_model_state_dict(unet)


PATTERNS = {
  "rank_pattern": {"conv1": 2, "^mid_block.attentions.0.to_v": 6},
  "alpha_pattern": {"to_q": 10, r"up_blocks.\d.resnets.\d.conv2": 1},
}


def _saved_by_unet(folder):
  """With the config in the header."""
  unet = _adapted(lora_alpha=6, **PATTERNS)
  unet.save_lora_adapter(folder)
  return unet


def _saved_by_pipeline(folder):
  from diffusers import IFPipeline

  unet = _adapted(lora_alpha=6, use_rslora=True)
  IFPipeline.save_lora_weights(
    folder,
    unet_lora_layers=_state(unet),
    unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
  )
  return unet


def _saved_up_and_down(folder):
  """As in the examples of diffusers: lora.up, no alpha."""
  from diffusers import IFPipeline
  from diffusers.utils import convert_state_dict_to_diffusers

  unet = _adapted((*ATTENTION, "conv1"), lora_alpha=4)
  state = convert_state_dict_to_diffusers(_state(unet))
  assert any(name.endswith("to_q.lora.up.weight") for name in state)
  IFPipeline.save_lora_weights(folder, unet_lora_layers=state)
  return unet


def _saved_by_processors(folder):
  """The format of old attention processors, which diffusers still loads."""
  from safetensors.torch import save_file

  new = _state(_adapted(OLD, lora_alpha=4))
  old = {}
  for name, value in new.items():
    attention, layer = name.split(".to_")
    layer, half = layer.removesuffix(".weight").rsplit(".lora_", 1)
    layer = f"to_{layer.removesuffix('.0')}_lora"
    half_name = {"A": "down", "B": "up"}[half]
    old[f"{attention}.processor.{layer}.{half_name}.weight"] = value
  save_file(old, folder / "pytorch_lora_weights.safetensors")
  unet = _network()
  unet.load_lora_adapter(dict(old), prefix=None)
  return unet


def _saved_with_alphas(folder):
  """Alpha of each layer as a tensor; diffusers takes it separately."""
  from safetensors.torch import save_file
  import torch

  state = {f"unet.{k}": v for k, v in _state(_adapted()).items()}
  modules = sorted({name.split(".lora_")[0] for name in state})
  alphas = {f"{m}.alpha": 1.0 + i % 5 for i, m in enumerate(modules)}
  save_file(
    state | {k: torch.tensor(v) for k, v in alphas.items()},
    folder / "pytorch_lora_weights.safetensors",
  )
  unet = _network()
  unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
  return unet


def _saved_by_peft(folder):
  import peft

  unet = _network()
  settings = _settings(unet, lora_alpha=6, **PATTERNS)
  model = peft.get_peft_model(unet, settings)
  model.save_pretrained(folder)
  text = (folder / "adapter_config.json").read_text()
  assert json.loads(text)["alpha_pattern"] == PATTERNS["alpha_pattern"]
  return model.base_model.model


WAYS = [
  _saved_by_unet,
  _saved_by_pipeline,
  _saved_up_and_down,
  _saved_by_processors,
  _saved_with_alphas,
  _saved_by_peft,
]


def _set_scale(unet, scale):
  from peft.tuners.tuners_utils import BaseTunerLayer

  for module in unet.modules():
    if isinstance(module, BaseTunerLayer):
      module.scale_layer(scale)


def _theirs(unet, video, text):
  import torch

  images = torch.tensor(video[:, 0].transpose(0, 3, 1, 2))
  with torch.no_grad():
    out = unet(
      images,
      torch.tensor(STEPS),
      torch.tensor(text),
      class_labels=torch.tensor(STEPS),
    ).sample
  return out.numpy().transpose(0, 2, 3, 1)[:, None]


@functools.cache
def _run():
  return jax.jit(UNet(CONFIG).apply)


def _ours(params, video, text):
  time = STEPS / np.float32(1e3)
  cond = Cond(text=text, frames=video[..., 3:], noise_level=time)
  out = _run()({"params": unflatten(params)}, video[..., :3], time, cond)
  return np.asarray(out)


def _params(unet, dtype=np.float32):
  state = {k: v.numpy().astype(dtype) for k, v in unet.state_dict().items()}
  leaves = from_diffusers(state, CONFIG, "unet")
  return {path: np.asarray(leaf) for path, leaf in leaves.items()}


@pytest.mark.parametrize("save", WAYS)
def test_a_merged_adapter_is_that_of_diffusers(save, tmp_path):
  unet = save(tmp_path)
  _set_scale(unet, SCALE)
  base = _params(_network())
  adapted_params = apply_adapters(
    [read_adapter(tmp_path)], {"ssr": base}, {"ssr": CONFIG}, SCALE
  )["ssr"]
  rng = np.random.default_rng(0)
  video = rng.standard_normal((len(STEPS), 1, 8, 12, 6), np.float32)
  text = rng.standard_normal((len(STEPS), 7, CONFIG.text_dim), np.float32)
  theirs = _theirs(unet, video, text)
  error = (
    np.abs(_ours(adapted_params, video, text) - theirs).max() / theirs.std()
  )
  change = np.abs(_ours(base, video, text) - theirs).max() / theirs.std()
  print(f"{save.__name__}: {error:.1e} of what changes by {change:.1e}")
  assert change > 0.1
  assert error < 1e-4


def _fused(unet, double=False):
  """Weights with the adapter merged by diffusers."""
  unet = unet.double() if double else unet
  unet.fuse_lora(lora_scale=SCALE)
  unet.unload_lora()
  return {k: v.numpy() for k, v in unet.state_dict().items()}


def test_half_precision_weights_are_those_of_fuse_lora(tmp_path):
  """Ours are exact sums, rounded once; diffusers rounds twice."""
  adapted = lambda: _adapted(lora_alpha=6, **PATTERNS).half()
  adapted().save_lora_adapter(tmp_path)
  base = _params(_network(), np.float16)
  adapted_params = apply_adapters(
    [read_adapter(tmp_path)], {"t2i": base}, {"t2i": CONFIG}, SCALE
  )
  ours = to_diffusers(adapted_params["t2i"], CONFIG)
  given = to_diffusers(base, CONFIG)
  theirs, exact = _fused(adapted()), _fused(adapted(), double=True)
  assert ours.keys() == theirs.keys() == exact.keys()
  same = rounded = changed = total = 0
  for name in ours:
    mine, before = np.asarray(ours[name]), np.asarray(given[name])
    assert mine.dtype == theirs[name].dtype == np.float16
    # Half a unit for their correction, at most twice as large as these, and
    # half a one for either sum.
    bound = 2 * np.spacing(np.maximum(np.abs(before), np.abs(theirs[name])))
    apart = mine.astype(np.float64) - theirs[name].astype(np.float64)
    assert (np.abs(apart) <= bound).all(), name
    same += (mine == theirs[name]).sum()
    rounded += (mine == exact[name].astype(np.float16)).sum()
    changed += (mine != before).sum()
    total += mine.size
  print(
    f"{rounded / total:.4%} are the exact sums, rounded; "
    f"{same / total:.1%} are as diffusers rounds; {changed / total:.0%} changed"
  )
  assert changed > 0.9 * total
  assert rounded > 0.999 * total
