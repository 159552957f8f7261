"""Shardings of weights, training state and activations."""

import math
import re
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lumiere_jax.parallel.mesh import BATCH

VIDEO = P(BATCH, None, "space", None, None)
"""(b, t, h, w, c): samples over the batch axes, rows over `space`."""

WHOLE_VIDEO = P(BATCH)
"""The same, with samples replicated over `space`."""

RULES: tuple[tuple[str, P], ...] = (
  # Kernels are sharded along their output features: shards are equal, and
  # gathering them concatenates whole matrices.
  (r"(qkv|text_kv)/kernel$", P("fsdp", None, None, None)),
  (r"attention/out/kernel$", P(None, None, "fsdp")),
  (r"(conv_time|resample/conv)/kernel$", P(None, None, "fsdp")),
  (r"(conv_\w+|stem|head|cond_in)/kernel$", P(None, None, None, "fsdp")),
  (r"(\w+_embed|text_pool)/\w+/kernel$", P(None, "fsdp")),
  (r"(film|skip|proj|text_proj)/kernel$", P(None, "fsdp")),
  # Small or irregular: replicated.
  (r"(^|/)text_encoder/", P()),  # if it trains
  (r"kernel/[ab]$", P()),  # of adapters
  (r"/(bias|scale|position|position_bias)$", P()),
  (r"(^|/)(step|skipped|skipped_in_a_row|count|ns_coeffs)$", P()),
  (r"/(b1|weight_sum|step_count|max_lr)$", P()),  # of schedule_free
)
"""Regex of paths -> spec; the first match counts. A leaf of another rank than
its spec (a factored moment) is replicated."""

T = TypeVar("T")


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """The spec of a leaf of the state, such as 'ema/down_0_0/conv_0/kernel'.

  Axes that do not divide their dimension are left out. Raises a ValueError if
  no rule matches.
  """
  for pattern, spec in RULES:
    if re.search(pattern, path):
      return fit_spec(spec, shape, mesh) if len(spec) == len(shape) else P()
  raise ValueError(f"no rule of parallel.sharding.RULES matches {path!r}")


def shardings(tree: T, mesh: Mesh) -> T:
  """The shardings of all leaves (arrays or shapes) of a tree, by `RULES`."""

  def of(path: tuple, leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, spec_of(_path(path), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, tree)


def constrain_leaves(tree: T) -> T:
  """Constrains weights or gradients to `RULES` if a mesh is set."""

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return tree
  return jax.tree_util.tree_map_with_path(
    lambda path, x: constrain(x, spec_of(_path(path), x.shape, mesh)), tree
  )


def fit_spec(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """A spec without the axes that do not divide their dimension.

  Of several axes on a dimension, the first ones stay as far as they divide.
  Axes that are manual in a `shard_map` are left out too.
  """
  manual = {
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Manual
  }

  def fit(axes: Any, size: int) -> Any:
    names = (axes,) if isinstance(axes, str) else axes or ()
    chosen: list[str] = []
    for name in names:
      if name in manual or mesh.shape[name] == 1:
        continue
      share = math.prod(mesh.shape[n] for n in [*chosen, name])
      if size % share:
        break
      chosen.append(name)
    return tuple(chosen) if len(chosen) > 1 else (*chosen, None)[0]

  padded = (*spec, *[None] * (len(shape) - len(spec)))
  return P(*map(fit, padded, shape))


def constrain(x: Array, spec: P) -> Array:
  """Constrains the sharding of `x` if a mesh is set (`jax.set_mesh`)."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, fit_spec(spec, x.shape, mesh))


@jax.custom_vjp
def gather_weight(weight: Array) -> Array:
  """Gathers a weight for its layer (FSDP).

  Without it, the compiler may gather activations instead. The gradient is not
  constrained, so that it is summed and sharded in one reduce-scatter.
  """
  return constrain(weight, P())


gather_weight.defvjp(
  lambda weight: (gather_weight(weight), None), lambda _, grad: (grad,)
)


def _path(keys: tuple) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")
