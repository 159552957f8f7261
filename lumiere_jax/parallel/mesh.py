"""The device mesh: which chips share samples, weights and rows of pixels."""

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
"""Axes that the samples of a batch are spread over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """How many ways a run is spread over its devices; one may be -1: the rest.

  Attributes:
    data: groups of devices that hold all weights among them and take samples
      of their own. In sampling, windows of a long video are spread over it.
      Slices that only a data-centre network joins are parts of this axis.
    fsdp: devices in such a group: each keeps a part of all weights, moments
      and averages, and takes samples of its own.
    space: devices that share one sample, each with some rows of its pixels.
  """

  data: int = -1
  fsdp: int = 1
  space: int = 1

  def __post_init__(self):
    sizes = self.sizes
    if sizes.count(-1) > 1:
      raise UserError(
        "config.mesh:",
        f"{_words(sizes)}",
        "only one of them can be -1, the rest",
      )
    given = [name for name in AXES if getattr(self, name) != -1]
    check_least(self, "config.mesh", given, least=1)

  @property
  def sizes(self) -> tuple[int, ...]:
    """In the order of `AXES`."""
    return tuple(getattr(self, name) for name in AXES)

  def filled(self, count: int) -> tuple[int, ...]:
    """Sizes of the axes over `count` devices, -1 filled in.

    Raises:
      UserError: they do not come to that many.
    """
    known = math.prod(size for size in self.sizes if size != -1)
    rest = max(1, count // known)
    sizes = tuple(rest if size == -1 else size for size in self.sizes)
    if math.prod(sizes) != count:
      raise UserError(
        "config.mesh:",
        f"{_words(self.sizes)} does not come to the {count} devices there are",
        "set one of them to -1, and the others to numbers whose "
        f"product divides {count}",
      )
    return sizes


def make_mesh(
  config: MeshConfig = MeshConfig(), devices: Sequence | None = None
) -> Mesh:
  """A mesh over devices of all processes; slow links are on the data axis.

  Args:
    config: sizes of the axes.
    devices: by default all there are; those of a described topology, say.

  Raises:
    UserError: the sizes do not come to the number of devices, or `data` is not
      shared equally by the slices there are.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = config.filled(len(devices))
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    array = _one_slice(sizes, devices)
  else:
    if sizes[0] % slices:
      raise UserError(
        f"config.mesh.data={sizes[0]}",
        f"is not shared equally by {slices} slices, which are parts of it",
        f"take a multiple of {slices}",
      )
    array = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices
    )
  return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
  """Raises a UserError where a micro-batch does not divide.

  Args:
    batch_size: clips a step, of all hosts and micro-batches.
    accumulate: micro-batches.
    mesh: that they are spread over.
  """
  shares = math.prod(mesh.shape[axis] for axis in BATCH)
  if batch_size % (shares * accumulate):
    parts = f" in {accumulate} micro-batches" if accumulate > 1 else ""
    raise UserError(
      f"config.train.batch_size={batch_size}",
      f"does not divide among {shares} devices{parts}",
      f"take a multiple of {shares * accumulate}, or let more devices "
      "share a clip with config.mesh.space",
    )


def _one_slice(sizes: tuple[int, ...], devices: list) -> np.ndarray:
  """Neighbours on the mesh are neighbours on the wires, where there are any."""
  try:
    return mesh_utils.create_device_mesh(sizes, devices)
  except (NotImplementedError, ValueError, AssertionError):
    # No such arrangement of the wires is known: any order is right.
    return np.asarray(devices).reshape(sizes)


def _words(sizes: Sequence[int]) -> str:
  return ", ".join(f"{k}={v}" for k, v in zip(AXES, sizes, strict=True))
