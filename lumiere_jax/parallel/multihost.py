"""Barriers, broadcasts and arrays across processes."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from lumiere_jax.parallel.mesh import BATCH


def is_primary() -> bool:
  """Whether this process is the one that writes what is written once."""
  return jax.process_index() == 0


def barrier(what: str) -> None:
  """Returns when every process is here.

  Args:
    what: they are waiting for; a name that no two places share.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def broadcast_flag(value: bool) -> bool:
  """The first process's value; every process has to call."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


T = TypeVar("T")


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_sample(mesh: Mesh) -> NamedSharding:
  """Axis 0, the samples, spread: batches."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def places(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
  """Which clips of a batch this process has to load: those of its devices."""
  indices = by_sample(mesh).addressable_devices_indices_map((batch_size,))
  found = {k for (rows,) in indices.values() for k in range(batch_size)[rows]}
  return tuple(sorted(found))


def to_devices(
  mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.Array]:
  """This process's clips of a batch -> the whole batch, spread over samples.

  Args:
    mesh: of all processes.
    batch: arrays whose rows are the clips at `places`.
    batch_size: of all processes together.
  """
  sharding = by_sample(mesh)
  row = {place: k for k, place in enumerate(places(mesh, batch_size))}

  def spread(rows: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      wanted = range(batch_size)[index[0]]
      return rows[row[wanted[0]] : row[wanted[-1]] + 1]

    shape = (batch_size, *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return {name: spread(rows) for name, rows in batch.items()}


def lay_out(tree: T, shardings: Any) -> T:
  """The same values laid out so; what is on a host is the same on every one.

  Args:
    tree: of arrays, on hosts or on devices.
    shardings: one for each leaf.
  """

  def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable or _is_of_many_hosts(leaf):
      return jax.device_put(leaf, sharding)
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

  return jax.tree.map(place, tree, shardings)


def replicate(mesh: Mesh, tree: T) -> T:
  """The same values, whole on every device."""
  return lay_out(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def abstract(tree: T, shardings: Any) -> T:
  """Shapes and dtypes of a tree, as if it lay so."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    tree,
    shardings,
  )


def to_host(tree: T) -> T:
  """Whole values as numpy, one leaf at a time; every process has to call."""

  def fetch(leaf: Any) -> np.ndarray:
    if _is_of_many_hosts(leaf):
      return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(jax.device_get(leaf))

  return jax.tree.map(fetch, tree)


def _is_of_many_hosts(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
