"""U-Net weights of DeepFloyd IF from and to the format of diffusers.

Names and shapes are those of `UNet2DConditionModel`. Leaves are read lazily, so
that models larger than memory can be converted.
"""

from collections.abc import Mapping

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

# Inner modules of the modules whose names end so; others are residual blocks.
_INNER: dict[str, dict[str, tuple[str, ...]]] = {
  "_embed": {"in": ("linear_1",), "out": ("linear_2",)},
  "text_pool": {
    "norm_in": ("norm1",),
    "query": ("pool.q_proj",),
    "key": ("pool.k_proj",),
    "value": ("pool.v_proj",),
    "out": ("proj",),
    "norm_out": ("norm2",),
  },
  # `qkv` and `text_kv` fuse several diffusers tensors into one array; cross
  # attention has queries only.
  "_attention": {
    "norm": ("group_norm",),
    "norm_text": ("norm_cross",),
    "qkv": ("to_q", "to_k", "to_v"),
    "text_kv": ("add_k_proj", "add_v_proj"),
    "out": ("to_out.0",),
  },
  "": {
    "norm_0": ("norm1",),
    "conv_0": ("conv1",),
    "film": ("time_emb_proj",),
    "norm_1": ("norm2",),
    "conv_1": ("conv2",),
    "skip": ("conv_shortcut",),
  },
}

_FUSED = ("qkv", "text_kv")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def tensor_names(config: UNetConfig) -> dict[str, tuple[str, ...]]:
  """Path of each spatial leaf -> the diffusers tensors it consists of."""
  return {
    path: _names(path, leaf.shape, len(config.channels))
    for path, leaf in spatial_leaves(config).items()
  }


def spatial_leaves(config: UNetConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the leaves that IF has, without those that Lumiere adds."""
  leaves = abstract_params(config).items()
  return {path: leaf for path, leaf in leaves if is_spatial(path)}


def from_diffusers(
  tensors: Mapping[str, LazyArray], config: UNetConfig, name: str
) -> dict[str, LazyArray]:
  """Spatial leaves, in the dtype of the source.

  `tensors` are all those of the model; `name` is their source, for errors.
  """
  leaves, names = spatial_leaves(config), tensor_names(config)
  expected = {
    tensor: _shape(path, leaves[path].shape)
    for path, parts in names.items()
    for tensor in parts
  }
  check_tensors(dict(tensors), expected, name, "give a U-Net of this config")
  return {
    path: _fuse(path, leaves[path].shape, [tensors[p] for p in parts])
    for path, parts in names.items()
  }


def to_diffusers(
  flat: Mapping[str, LazyArray] | FlatParams, config: UNetConfig
) -> dict[str, LazyArray]:
  """The inverse of `from_diffusers`; other than spatial leaves are ignored."""
  return {
    tensor: _split(path, flat[path], number)
    for path, names in tensor_names(config).items()
    for number, tensor in enumerate(names)
  }


def is_fused(path: str) -> bool:
  """Whether a leaf consists of several diffusers tensors."""
  return path.split("/")[-2] in _FUSED


def transpose_kernel(kernel: np.ndarray) -> np.ndarray:
  """(out, in, *window) -> (*window, in, out)."""
  return kernel.transpose(*range(2, kernel.ndim), 1, 0)


def _fuse(
  path: str, shape: tuple[int, ...], parts: list[LazyArray]
) -> LazyArray:
  def make() -> np.ndarray:
    arrays = [np.asarray(part) for part in parts]
    if path.endswith("kernel"):
      arrays = [transpose_kernel(array) for array in arrays]
    whole = np.stack(arrays, -2) if len(arrays) > 1 else arrays[0]
    return whole.reshape(shape)

  return LazyArray(shape, np.result_type(*(part.dtype for part in parts)), make)


def _split(path: str, leaf: LazyArray | np.ndarray, number: int) -> LazyArray:
  shape = _shape(path, leaf.shape)

  def make() -> np.ndarray:
    array = np.asarray(leaf)
    if is_fused(path):  # (in, parts, heads, width); biases have no `in`.
      array = np.moveaxis(array, -3, 0)[number]
    if not path.endswith("kernel"):
      return array.reshape(shape)
    # Merges heads and their width into one axis: (*window, in, out).
    out, fan_in, *window = shape
    array = array.reshape(*window, fan_in, out)
    return array.transpose(-1, -2, *range(len(window)))

  return LazyArray(shape, np.dtype(leaf.dtype), make)


def _shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the diffusers tensors of a leaf."""
  inner = path.split("/")[-2]
  is_kernel = path.endswith("kernel")
  if inner in _FUSED:
    fan_in, out = shape[0], shape[-2] * shape[-1]
    return (out, fan_in) if is_kernel else (out,)
  if not is_kernel:
    return tuple(shape)
  if inner == "out" and len(shape) == 3:
    return (shape[-1], shape[0] * shape[1])
  if inner == "skip":  # A dense layer here, a 1x1 convolution in diffusers.
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
  parts = next(x for end, x in _INNER.items() if module.endswith(end))
  names = parts[inner[0]]
  if inner[0] in _FUSED:
    names = names[: shape[-3]]
  return tuple(f"{prefix}.{name}.{leaf}" for name in names)


def _prefix(module: str, levels: int) -> str:
  if module in _MODULES:
    return _MODULES[module]
  way, level, kind = module.split("_", 2)
  # diffusers counts decoder levels from the coarsest one.
  number = int(level) if way == "down" else levels - 1 - int(level)
  block = f"{way}_blocks.{number}"
  if kind == "resample":
    return f"{block}.{way}samplers.0"
  index, _, attention = kind.partition("_")
  return f"{block}.{'attentions' if attention else 'resnets'}.{index}"
