"""DeepFloyd IF's U-Net as diffusers has it: its config and weights as ours.

IF's weights are published in that form.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp

from lumiere_jax.models.inflate import flatten
from lumiere_jax.models.unet import UNet, UNetConfig
from lumiere_jax.typing import Cond, FlatParams

_MODULES = {
  "stem": "conv_in",
  "head_norm": "conv_norm_out",
  "head": "conv_out",
  "text_proj": "encoder_hid_proj",
  "time_embed": "time_embedding",
  "noise_embed": "class_embedding",
  "text_pool": "add_embedding",
  "mid_0": "mid_block.resnets.0",
  "mid_attention": "mid_block.attentions.0",
  "mid_1": "mid_block.resnets.1",
}
_EMBEDDING = {"in": ("linear_1",), "out": ("linear_2",)}
_POOL = {
  "norm_in": ("norm1",),
  "query": ("pool.q_proj",),
  "key": ("pool.k_proj",),
  "value": ("pool.v_proj",),
  "out": ("proj",),
  "norm_out": ("norm2",),
}
_RES_BLOCK = {
  "norm_0": ("norm1",),
  "conv_0": ("conv1",),
  "film": ("time_emb_proj",),
  "norm_1": ("norm2",),
  "conv_1": ("conv2",),
  "skip": ("conv_shortcut",),
}
# Parts that we keep as one array; those of attention to text alone are fewer.
_ATTENTION = {
  "norm": ("group_norm",),
  "norm_text": ("norm_cross",),
  "qkv": ("to_q", "to_k", "to_v"),
  "text_kv": ("add_k_proj", "add_v_proj"),
  "out": ("to_out.0",),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def diffusers_config(config: UNetConfig) -> dict[str, Any]:
  """Arguments of `UNet2DConditionModel` for the model that `config` means."""
  c = config
  block = lambda way, kind: (
    f"Resnet{way}sampleBlock2D"
    if kind == "none"
    else f"SimpleCrossAttn{way}Block2D"
  )
  return {
    "act_fn": c.activation,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": c.pool_heads,
    "attention_head_dim": c.head_dim,
    "block_out_channels": c.channels,
    "class_embed_type": "timestep" if c.noise_conditioned else None,
    "cross_attention_dim": c.text_channels,
    "cross_attention_norm": "group_norm",
    "down_block_types": [block("Down", kind) for kind in c.attention],
    "encoder_hid_dim": c.text_dim,
    "encoder_hid_dim_type": "text_proj",
    "in_channels": c.in_channels,
    "layers_per_block": c.num_res_blocks,
    "mid_block_only_cross_attention": c.attention[-1] != "self",
    "mid_block_scale_factor": 1 / c.skip_scale,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": c.norm_groups,
    "only_cross_attention": [kind == "cross" for kind in c.attention],
    "out_channels": c.out_channels,
    "resnet_out_scale_factor": 1 / c.skip_scale,
    "resnet_skip_time_act": c.activate_embedding_once,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_act_fn": (
      c.activation if c.activate_embedding_once else None
    ),
    "time_embedding_dim": c.channels[-1],
    "up_block_types": [block("Up", kind) for kind in c.attention[::-1]],
  }


def abstract_leaves(config: UNetConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Paths and shapes of our parameters, at no memory."""
  side = config.spatial_factor
  z = jnp.zeros((1, 1, side, side, 3))
  cond = Cond(
    text=jnp.zeros((1, 1, config.text_dim)),
    frames=jnp.zeros((1, 1, side, side, config.in_channels - 3)),
    noise_level=jnp.zeros(1),
  )
  init = jax.eval_shape(
    UNet(config).init, jax.random.key(0), z, jnp.zeros(1), cond
  )
  return flatten(init["params"])


def params_from_diffusers(
  state: Mapping[str, Any], config: UNetConfig
) -> FlatParams:
  """Our parameters from a state dict, every tensor of which is used once."""
  left, flat = dict(state), {}
  for path, leaf in abstract_leaves(config).items():
    names = [name for name in _names(path, config) if name in left]
    parts = [left.pop(name) for name in names]
    if path.endswith("kernel"):  # (out, in, h, w) becomes (h, w, in, out)
      turn = lambda x: jnp.transpose(x, (*range(2, x.ndim), 1, 0))
      parts = [turn(part) for part in parts]
    assert parts, f"nothing for {path}"
    flat[path] = jnp.stack(parts, -2).reshape(leaf.shape)
  assert not left, f"not used: {sorted(left)}"
  return flat


def _names(path: str, config: UNetConfig) -> list[str]:
  """The tensors that make up our leaf `path`."""
  module, *inner, leaf = path.split("/")
  prefix = _prefix(module, len(config.channels))
  if leaf == "position":
    return [f"{prefix}.pool.positional_embedding"]
  leaf = _LEAVES[leaf]
  if not inner:
    return [f"{prefix}.{leaf}"]
  return [f"{prefix}.{part}.{leaf}" for part in _parts(module)[inner[0]]]


def _prefix(module: str, levels: int) -> str:
  if module in _MODULES:
    return _MODULES[module]
  way, level, kind = re.fullmatch(r"(down|up)_(\d+)_(\w+)", module).groups()
  # They count the levels of the decoder from the coarsest one.
  level = int(level) if way == "down" else levels - 1 - int(level)
  if kind == "resample":
    return f"{way}_blocks.{level}.{way}samplers.0"
  number, attention = re.fullmatch(r"(\d+)(_attention)?", kind).groups()
  kind = "attentions" if attention else "resnets"
  return f"{way}_blocks.{level}.{kind}.{number}"


def _parts(module: str) -> dict[str, tuple[str, ...]]:
  if module == "text_pool":
    return _POOL
  if module in ("time_embed", "noise_embed"):
    return _EMBEDDING
  return _ATTENTION if module.endswith("attention") else _RES_BLOCK
