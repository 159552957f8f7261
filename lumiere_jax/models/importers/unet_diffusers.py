"""DeepFloyd IF's weights, which are published in diffusers' form, and ours.

Names and shapes are those of its `UNet2DConditionModel`. Nothing is read until
a leaf is asked for, so a model larger than memory can be turned.
"""

from collections.abc import Mapping
import re

import jax
import numpy as np

from lumiere_jax.models.config import UNetConfig
from lumiere_jax.models.importers.hf_checkpoint import check_tensors
from lumiere_jax.models.params import is_spatial
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

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


# What they keep apart and we as one array; attention to the text alone has
# queries only.
_ATTENTION = {
  "norm": ("group_norm",),
  "norm_text": ("norm_cross",),
  "qkv": ("to_q", "to_k", "to_v"),
  "text_kv": ("add_k_proj", "add_v_proj"),
  "out": ("to_out.0",),
}


_FUSED = ("qkv", "text_kv")


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def tensor_names(config: UNetConfig) -> dict[str, tuple[str, ...]]:
  """For each of our spatial leaves the tensors that make it up, in order."""
  return {
    path: _names(path, leaf.shape, len(config.channels))
    for path, leaf in spatial_leaves(config).items()
  }


def spatial_leaves(config: UNetConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the leaves that IF has too: without what Lumiere adds."""
  leaves = abstract_params(config).items()
  return {path: leaf for path, leaf in leaves if is_spatial(path)}


def from_diffusers(
  tensors: Mapping[str, LazyArray], config: UNetConfig, name: str
) -> dict[str, LazyArray]:
  """Our leaves, in the dtype of the source.

  Args:
    tensors: all tensors of the model.
    config: of the same network.
    name: what they are from, for errors.

  Raises:
    UserError: tensors are missing, unknown or of the wrong shape; all named.
  """
  leaves, names = spatial_leaves(config), tensor_names(config)
  expected = {
    tensor: _shape(path, leaves[path].shape)
    for path, parts in names.items()
    for tensor in parts
  }
  check_tensors(dict(tensors), expected, name)
  return {
    path: _joined(path, leaves[path].shape, [tensors[p] for p in parts])
    for path, parts in names.items()
  }


def to_diffusers(
  flat: Mapping[str, LazyArray] | FlatParams, config: UNetConfig
) -> dict[str, LazyArray]:
  """The inverse of `from_diffusers`, of the spatial leaves of any U-Net."""
  return {
    tensor: _part(path, flat[path], number)
    for path, names in tensor_names(config).items()
    for number, tensor in enumerate(names)
  }


def is_fused(path: str) -> bool:
  """Whether several of their tensors are one of our leaves."""
  return path.split("/")[-2] in _FUSED


def turn_kernel(kernel: np.ndarray) -> np.ndarray:
  """(out, in, *window) -> (*window, in, out)."""
  return kernel.transpose(*range(2, kernel.ndim), 1, 0)


def _joined(
  path: str, shape: tuple[int, ...], parts: list[LazyArray]
) -> LazyArray:
  def make() -> np.ndarray:
    arrays = [np.asarray(part) for part in parts]
    if path.endswith("kernel"):
      arrays = [turn_kernel(array) for array in arrays]
    whole = np.stack(arrays, -2) if len(arrays) > 1 else arrays[0]
    return whole.reshape(shape)

  return LazyArray(shape, np.result_type(*(part.dtype for part in parts)), make)


def _part(path: str, leaf: LazyArray | np.ndarray, number: int) -> LazyArray:
  shape = _shape(path, leaf.shape)

  def make() -> np.ndarray:
    array = np.asarray(leaf)
    if is_fused(path):  # (in, parts, heads, width), or a bias without in
      array = np.moveaxis(array, -3, 0)[number]
    if not path.endswith("kernel"):
      return array.reshape(shape)
    # (*window, in, out), heads and their width being one axis for them.
    out, fan_in, *window = shape
    array = array.reshape(*window, fan_in, out)
    return array.transpose(-1, -2, *range(len(window)))

  return LazyArray(shape, np.dtype(leaf.dtype), make)


def _shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Of each tensor of theirs that makes up our leaf."""
  inner = path.split("/")[-2]
  is_kernel = path.endswith("kernel")
  if inner in _FUSED:
    fan_in, out = shape[0], shape[-2] * shape[-1]
    return (out, fan_in) if is_kernel else (out,)
  if not is_kernel:
    return tuple(shape)
  if inner == "out" and len(shape) == 3:
    return (shape[-1], shape[0] * shape[1])
  if inner == "skip":  # a dense layer here, a convolution of one pixel there
    return (*shape[::-1], 1, 1)
  *window, fan_in, out = shape
  return (out, fan_in, *window)


def _names(path: str, shape: tuple[int, ...], levels: int) -> tuple[str, ...]:
  module, *inner, leaf = path.split("/")
  prefix = _prefix(module, levels)
  if leaf == "position":
    return (f"{prefix}.pool.positional_embedding",)
  leaf = _LEAVES[leaf]
  if not inner:
    return (f"{prefix}.{leaf}",)
  names = _parts(module)[inner[0]]
  if inner[0] in _FUSED:
    names = names[: shape[-3]]
  return tuple(f"{prefix}.{name}.{leaf}" for name in names)


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
