"""Barriers, broadcasts and arrays across processes."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from lumiere_jax.parallel.mesh import BATCH

T = TypeVar("T")


def is_primary() -> bool:
  """Whether this is process 0, which alone writes shared files."""
  return jax.process_index() == 0


def barrier(what: str) -> None:
  """Waits for all processes; `what` is a unique name of this barrier."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def broadcast_flag(value: bool) -> bool:
  """Process 0's value; all processes must call it."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def replicated(mesh: Mesh) -> NamedSharding:
  """A full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_sample(mesh: Mesh) -> NamedSharding:
  """Axis 0, the samples, sharded over the batch axes."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
  """Indices of the clips of a batch that are on this process's devices."""
  indices = by_sample(mesh).addressable_devices_indices_map((batch_size,))
  found = {k for i in indices.values() if i for k in range(batch_size)[i[0]]}
  return tuple(sorted(found))


def to_devices(
  mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.Array]:
  """This process's clips of a batch -> the whole batch, sharded by sample.

  Args:
    mesh: of all processes.
    batch: arrays of the clips at `local_rows`.
    batch_size: of all processes together.
  """
  sharding = by_sample(mesh)
  local = {row: k for k, row in enumerate(local_rows(mesh, batch_size))}

  def shard(array: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      rows = range(batch_size)[index[0] if index else slice(None)]
      return array[local[rows[0]] : local[rows[-1]] + 1]

    shape = (batch_size, *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return {name: shard(array) for name, array in batch.items()}


def lay_out(tree: T, shardings: Any) -> T:
  """Moves a tree of arrays to the given shardings, one for each leaf.

  Host arrays must be the same in all processes.
  """

  def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable or _spans_hosts(leaf):
      return jax.device_put(leaf, sharding)
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

  return jax.tree.map(place, tree, shardings)


def replicate(mesh: Mesh, tree: T) -> T:
  """Copies a tree to every device."""
  return lay_out(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def abstract(tree: T, shardings: Any) -> T:
  """Shapes and dtypes of a tree, with shardings."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    tree,
    shardings,
  )


def to_host(tree: T) -> T:
  """Gathers a tree as numpy, one leaf at a time; all processes must call it."""

  def fetch(leaf: Any) -> np.ndarray:
    if _spans_hosts(leaf):
      return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(jax.device_get(leaf))

  return jax.tree.map(fetch, tree)


def _spans_hosts(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
