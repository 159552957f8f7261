"""The device mesh: axes for samples, weights and rows of pixels."""

from collections.abc import Sequence
import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
import numpy as np

from lumiere_jax.errors import UserError, check_least

AXES = ("data", "fsdp", "space")

BATCH = ("data", "fsdp")
"""Axes that a batch is sharded over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Sizes of the mesh axes; one may be -1: all remaining devices.

  Attributes:
    data: data parallelism: groups of devices with a full copy of the weights.
      In sampling, windows of a long video are sharded over it. Slices joined
      by a data-centre network are parts of this axis.
    fsdp: devices in such a group: each holds a shard of weights, moments and
      averages, and has samples of its own.
    space: devices that share a sample, each with some rows of its pixels.
  """

  data: int = -1
  fsdp: int = 1
  space: int = 1

  def __post_init__(self):
    sizes = self.sizes
    if sizes.count(-1) > 1:
      raise UserError(
        "config.mesh:",
        f"{_format(sizes)} has more than one -1",
        "set at most one axis to -1",
      )
    given = [name for name in AXES if getattr(self, name) != -1]
    check_least(self, "config.mesh", given, least=1)

  @property
  def sizes(self) -> tuple[int, ...]:
    """In the order of `AXES`."""
    return tuple(getattr(self, name) for name in AXES)

  def resolve(self, count: int) -> tuple[int, ...]:
    """Sizes of the axes over `count` devices, with -1 replaced."""
    known = math.prod(size for size in self.sizes if size != -1)
    rest = max(1, count // known)
    sizes = tuple(rest if size == -1 else size for size in self.sizes)
    if math.prod(sizes) != count:
      raise UserError(
        "config.mesh:",
        f"{_format(self.sizes)} does not multiply to the {count} available "
        "devices",
        "set one axis to -1, and the others to sizes whose product divides "
        f"{count}",
      )
    return sizes


def make_mesh(
  config: MeshConfig = MeshConfig(), devices: Sequence | None = None
) -> Mesh:
  """A mesh over all devices, or those of a described topology.

  The data axis goes over the slowest links.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = config.resolve(len(devices))
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    array = _one_slice(sizes, devices)
  else:
    if sizes[0] % slices:
      raise UserError(
        f"config.mesh.data={sizes[0]}",
        f"does not divide among {slices} slices",
        f"use a multiple of {slices}",
      )
    array = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices
    )
  return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
  """Raises a UserError where a micro-batch does not divide among devices.

  `batch_size` is that of all hosts and of all `accumulate` micro-batches.
  """
  shares = math.prod(mesh.shape[axis] for axis in BATCH)
  if batch_size % (shares * accumulate):
    parts = f" in {accumulate} micro-batches" if accumulate > 1 else ""
    raise UserError(
      f"config.train.batch_size={batch_size}",
      f"does not divide among {shares} devices{parts}",
      f"use a multiple of {shares * accumulate}, or let more devices share a "
      "clip with config.mesh.space",
    )


def _one_slice(sizes: tuple[int, ...], devices: list) -> np.ndarray:
  """Mesh neighbours are physical neighbours, where JAX knows how."""
  try:
    return mesh_utils.create_device_mesh(sizes, devices)
  except (NotImplementedError, ValueError, AssertionError):
    # Unknown topology: any order works.
    return np.asarray(devices).reshape(sizes)


def _format(sizes: Sequence[int]) -> str:
  return ", ".join(f"{k}={v}" for k, v in zip(AXES, sizes, strict=True))
