"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685).

Two thin matrices A and B train while a kernel W is frozen; W + A B takes its
place. Adapters are leaves `lora/PATH/a` and `lora/PATH/b` for the kernel at
PATH. A network is run with `applied` adapters, or they are merged into it.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from lumiere_jax.errors import UserError
from lumiere_jax.models.params import (
  first_of,
  is_spatial,
  is_temporal,
  select_paths,
)
from lumiere_jax.models.sharded_layers import convolve
from lumiere_jax.models.temporal import TemporalConv, convolve_time
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

PREFIX = "lora/"

TARGETS = {"temporal": is_temporal, "spatial": is_spatial}
"""Short names for common sets of layers."""

# Kernels with one input axis and several output axes (parts, heads, width); all
# others have one output axis.
_ONE_INPUT = re.compile(r"(^|/)(qkv|text_kv)/kernel$")


def init_adapter(
  flat: FlatParams, target: str, rank: int, key: jax.Array
) -> FlatParams:
  """A fresh adapter of weights (or shapes), without effect: B is zero.

  `target` is 'temporal', 'spatial', or a regex searched in paths.
  """
  paths = select_paths(
    (path for path in flat if path.endswith("/kernel")),
    target,
    "config.lora.target",
    TARGETS,
  )
  adapter = {}
  keys = jax.random.split(key, len(paths))
  for path, subkey in zip(paths, keys, strict=True):
    inner, outer = axes(path, flat[path].shape)
    a = jax.random.normal(subkey, (*inner, rank))
    adapter[f"{PREFIX}{path}/a"] = np.prod(inner) ** -0.5 * a
    adapter[f"{PREFIX}{path}/b"] = jnp.zeros((rank, *outer))
  return adapter


def split_params(flat: FlatParams) -> tuple[FlatParams, FlatParams]:
  """Splits leaves into (weights, adapter)."""
  adapter = {k: v for k, v in flat.items() if k.startswith(PREFIX)}
  return {k: v for k, v in flat.items() if k not in adapter}, adapter


def scaled(flat: FlatParams, scale: float) -> FlatParams:
  """The leaves with the corrections of adapters multiplied by `scale`."""
  return {
    k: v * scale if k.startswith(PREFIX) and k.endswith("/b") else v
    for k, v in flat.items()
  }


def merge(flat: FlatParams) -> FlatParams:
  """Merges adapters into weights: W + A B, in the dtype of W.

  Sums are float32 and rounded once. Needs the memory of one float32 kernel
  besides the result; lazy kernels stay lazy.
  """
  weights, adapter = split_params(flat)
  check_fits(weights, adapter, "the adapter")
  for path in kernels(adapter):
    weight = weights[path]
    a, b = (adapter[f"{PREFIX}{path}/{x}"] for x in "ab")
    make = functools.partial(_corrected, weight, a, b)
    is_lazy = isinstance(weight, LazyArray)
    weights[path] = (
      LazyArray(weight.shape, weight.dtype, make) if is_lazy else make()
    )
  return weights


def check_fits(weights: FlatParams, adapter: FlatParams, name: str) -> None:
  """Checks that weights have every kernel of an adapter, in its shape."""
  problems = []
  for path in kernels(adapter):
    a, b = (adapter[f"{PREFIX}{path}/{x}"].shape for x in "ab")
    if path not in weights:
      problems.append(f"no {path}")
    elif a[:-1] + b[1:] != tuple(weights[path].shape) or a[-1] != b[0]:
      problems.append(f"{path} of another shape")
  if problems:
    raise UserError(
      name,
      f"was trained on another model: this one has {first_of(problems)}",
      "give the model that it was trained on",
    )


def kernels(adapter: FlatParams) -> list[str]:
  """Paths of the kernels that an adapter has corrections for."""
  ends = [k.removeprefix(PREFIX) for k in adapter]
  return [k.removesuffix("/b") for k in ends if k.endswith("/b")]


def axes(
  path: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The shape of a kernel as (input axes, output axes)."""
  inputs = 1 if _ONE_INPUT.search(path) else len(shape) - 1
  return tuple(shape[:inputs]), tuple(shape[inputs:])


@contextlib.contextmanager
def applied(adapter: FlatParams, scale: float = 1.0) -> Iterator[None]:
  """Within this context, layers compute x W + scale * x A B.

  `scale` is alpha / rank.
  """

  def intercept(
    call: Callable, args: tuple, kwargs: dict[str, Any], context: Any
  ) -> Any:
    out = call(*args, **kwargs)
    module = context.module
    leaf = f"{PREFIX}{'/'.join(module.path)}/kernel"
    if context.method_name != "__call__" or f"{leaf}/a" not in adapter:
      return out
    a, b = (adapter[f"{leaf}/{x}"].astype(out.dtype) for x in "ab")
    low = _contract(module, args[0].astype(out.dtype), a)
    return out + scale * jnp.tensordot(low, b, axes=1)

  if not adapter:
    yield
    return
  with nn.intercept_methods(intercept):
    yield


def _contract(
  module: nn.Module, x: Array, a: Array
) -> Float[Array, "... rank"]:
  """The linear map of a layer, with the kernel A and without a bias."""
  if isinstance(module, TemporalConv):
    return convolve_time(x, a, module.resample)
  if isinstance(module, nn.Conv):
    out = convolve(x.reshape(-1, *x.shape[-3:]), a)
    return out.reshape(*x.shape[:-1], -1)
  return jnp.tensordot(x, a, axes=a.ndim - 1)


def _corrected(weight: Any, a: Any, b: Any) -> np.ndarray:
  weight = np.asarray(weight)
  a, b = (np.asarray(x, np.float32) for x in (a, b))
  total = np.tensordot(a, b, axes=1)
  total += weight
  return total.astype(weight.dtype, copy=False)
