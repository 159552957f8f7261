"""Where weights, their training state and activations lie on the mesh."""

import math
import re
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lumiere_jax.parallel.mesh import BATCH

VIDEO = P(BATCH, None, "space", None, None)
"""(b, t, h, w, c): samples over groups, rows over the devices of a sample."""


WHOLE_VIDEO = P(BATCH)
"""The same, whole on each device that shares a sample."""


RULES: tuple[tuple[str, P], ...] = (
  # Kernels are cut along their output features: all devices then hold equal
  # parts, and what is gathered is whole matrices one beside the other.
  (r"(qkv|text_kv)/kernel$", P("fsdp", None, None, None)),
  (r"attention/out/kernel$", P(None, None, "fsdp")),
  (r"(conv_time|resample/conv)/kernel$", P(None, None, "fsdp")),
  (r"(conv_\w+|stem|head|cond_in)/kernel$", P(None, None, None, "fsdp")),
  (r"(\w+_embed|text_pool)/\w+/kernel$", P(None, "fsdp")),
  (r"(film|skip|proj|text_proj)/kernel$", P(None, "fsdp")),
  # Small, or of a shape of its own: whole on every device.
  (r"(^|/)text_encoder/", P()),  # that trains along
  (r"kernel/[ab]$", P()),  # of adapters
  (r"/(bias|scale|position|position_bias)$", P()),
  (r"(^|/)(step|skipped|skipped_in_a_row|count|ns_coeffs)$", P()),
)
"""Path of a leaf -> how it is cut; the first that matches. A leaf of another
rank than its rule has (a factored moment) is whole everywhere."""


T = TypeVar("T")


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """How a leaf of the state is cut.

  Args:
    path: of the leaf, such as 'ema/down_0_0/conv_0/kernel'.
    shape: of the leaf.
    mesh: sizes of the axes; one that does not divide its dimension is left
      out: that dimension is then whole on every device of the axis.

  Raises:
    ValueError: no rule matches.
  """
  for pattern, spec in RULES:
    if re.search(pattern, path):
      return fit(spec, shape, mesh) if len(spec) == len(shape) else P()
  raise ValueError(f"no rule of parallel.sharding.RULES matches {path!r}")


def shardings(tree: T, mesh: Mesh) -> T:
  """`tree` with the sharding of each leaf (arrays or shapes) in its place.

  Raises:
    ValueError: no rule matches the path of a leaf.
  """

  def of(path: tuple, leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, spec_of(_path(path), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, tree)


def constrain_leaves(tree: T) -> T:
  """Weights or gradients laid out by the rules where a mesh is set."""

  def of(path: tuple, leaf: Array) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
      return leaf
    return constrain(leaf, spec_of(_path(path), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, tree)


def fit(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """A spec without the axes that do not divide their dimension.

  Of several axes on a dimension the first ones stay, as far as they divide.
  Axes that a `shard_map` has already divided up are left out as well.
  """
  manual = {
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Manual
  }

  def kept(axes: Any, size: int) -> Any:
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

  spec = (*spec, *[None] * (len(shape) - len(spec)))
  return P(*map(kept, spec, shape))


def constrain(x: Array, spec: P) -> Array:
  """`x`, laid out so where a mesh is set (`jax.set_mesh`); else as it is."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, fit(spec, x.shape, mesh))


@jax.custom_vjp
def gather_weight(weight: Array) -> Array:
  """A weight gathered for its layer, which then needs no other's pixels.

  Without it the compiler may gather activations instead. Its gradient is left
  as it comes, to be summed and cut in one go.
  """
  return constrain(weight, P())


gather_weight.defvjp(
  lambda weight: (gather_weight(weight), None), lambda _, grad: (grad,)
)


def _path(keys: tuple) -> str:
  return "/".join(map(_name, keys))


def _name(key: Any) -> str:
  for attribute in ("name", "key", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  raise TypeError(f"a tree with keys of type {type(key).__name__}")
