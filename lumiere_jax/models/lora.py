"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685).

A kernel W is corrected by A B, two thin matrices that train while W is frozen.
Adapters are leaves beside the others, `lora/PATH/a` and `lora/PATH/b` for the
kernel at PATH, and a network is run with them or has them merged into it.
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
from lumiere_jax.models.params import is_spatial, is_temporal
from lumiere_jax.models.sharded_layers import convolve
from lumiere_jax.models.temporal import TemporalConv, convolve_time
from lumiere_jax.storage.safetensors import LazyArray
from lumiere_jax.typing import FlatParams

PREFIX = "lora/"


TARGETS = {"temporal": is_temporal, "spatial": is_spatial}
"""Short names of the layers that adapters are most often put on."""


# Kernels of several heads and parts, which alone have one input axis and
# several output axes; all others end in their one output axis.
_ONE_INPUT = re.compile(r"(^|/)(qkv|text_kv)/kernel$")


def init_adapter(
  flat: FlatParams, target: str, rank: int, key: jax.Array
) -> FlatParams:
  """A fresh adapter, which changes nothing yet: A is random, B is zero.

  Args:
    flat: the weights, or their shapes.
    target: 'temporal', 'spatial', or a regex searched in paths.
    rank: columns of A and rows of B.
    key: of A.

  Raises:
    UserError: the target is malformed or matches no kernel.
  """
  try:
    chosen = TARGETS.get(target) or re.compile(target).search
  except re.error as error:
    raise UserError(
      f"config.lora.target={target!r}",
      f"is no regular expression: {error}",
      f"give one, or one of {', '.join(TARGETS)}",
    ) from error
  paths = [k for k in flat if k.endswith("/kernel") and chosen(k)]
  if not paths:
    raise UserError(
      f"config.lora.target={target!r} matches no kernel; kernels look like "
      + ", ".join([k for k in flat if k.endswith("/kernel")][:3])
    )
  adapter = {}
  for path, subkey in zip(
    paths, jax.random.split(key, len(paths)), strict=True
  ):
    inner, outer = axes(path, flat[path].shape)
    std = np.prod(inner) ** -0.5
    adapter[f"{PREFIX}{path}/a"] = std * jax.random.normal(
      subkey, (*inner, rank)
    )
    adapter[f"{PREFIX}{path}/b"] = jnp.zeros((rank, *outer))
  return adapter


def split_params(flat: FlatParams) -> tuple[FlatParams, FlatParams]:
  """(weights, adapter) of leaves that may hold both."""
  adapter = {k: v for k, v in flat.items() if k.startswith(PREFIX)}
  return {k: v for k, v in flat.items() if k not in adapter}, adapter


def scaled(flat: FlatParams, scale: float) -> FlatParams:
  """The same leaves with adapters that correct `scale` times as much."""
  return {
    k: v * scale if k.startswith(PREFIX) and k.endswith("/b") else v
    for k, v in flat.items()
  }


def merge(flat: FlatParams) -> FlatParams:
  """Plain weights W + A B, in the precision of W; adapters are gone.

  Sums are float32 and rounded once. Needs the memory of one kernel in float32
  beside the result; kernels that are lazy stay so.

  Args:
    flat: weights (numpy, jax or lazy) and adapters, or weights alone.

  Raises:
    UserError: the adapter is for other weights; the leaves are named.
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
  """Raises a UserError naming the kernels that an adapter does not fit."""
  problems = []
  for path in kernels(adapter):
    a, b = (adapter[f"{PREFIX}{path}/{x}"].shape for x in "ab")
    if path not in weights:
      problems.append(f"no {path}")
    elif a[:-1] + b[1:] != tuple(weights[path].shape) or a[-1] != b[0]:
      problems.append(f"{path} of another shape")
  if problems:
    more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
    raise UserError(
      name,
      "was trained on another model: this one has "
      f"{', '.join(problems[:4])}{more}",
      "give the model it was made for",
    )


def kernels(adapter: FlatParams) -> list[str]:
  """Paths of the kernels that an adapter corrects."""
  ends = [k.removeprefix(PREFIX) for k in adapter]
  return [k.removesuffix("/b") for k in ends if k.endswith("/b")]


def axes(
  path: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """(input axes, output axes) of a kernel."""
  inputs = 1 if _ONE_INPUT.search(path) else len(shape) - 1
  return tuple(shape[:inputs]), tuple(shape[inputs:])


@contextlib.contextmanager
def applied(adapter: FlatParams, scale: float = 1.0) -> Iterator[None]:
  """Within it, networks add x A B to x W, and no gradient of W is formed.

  Args:
    adapter: leaves as `init_adapter` makes them; {} does nothing.
    scale: of the correction: alpha / rank.
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
  """What the layer computes, with the thin kernel A."""
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
