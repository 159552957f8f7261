"""The device mesh and where batches and state lie on it."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from lumiere_jax.typing import UserError

AXES = ("data",)


def make_mesh() -> Mesh:
  """All devices of all processes on the data axis."""
  return jax.make_mesh(
    (jax.device_count(),), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device: state."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0, the samples, spread over the data axis: batches."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises a UserError where the global batch does not divide."""
  if batch_size % mesh.shape["data"]:
    raise UserError(
      f"config.train.batch_size={batch_size} does not divide among "
      f"{mesh.shape['data']} devices; take a multiple of that"
    )


def to_devices(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """This process's rows of a batch -> global arrays sharded over samples."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }
