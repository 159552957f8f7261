"""TPU slices by name, described by libtpu on a machine without TPUs."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from lumiere_jax.errors import UserError, check_choice, option
from lumiere_jax.parallel import hardware

# libtpu asks the machine what TPUs it has before it describes any. These
# answers, of any kind, spare it the questions to Google Cloud's metadata
# server (minutes where there is none) and the complaints.
_NO_QUESTIONS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  # Several may plan at a time: none of them holds a TPU.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


_NAME = re.compile(r"(\w+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
  """A TPU version: what JAX calls it, and its slices."""

  device_kind: str
  most_chips: int
  flat: bool = False
  devices_per_chip: int = 1


KINDS = {
  "v4": _Kind(device_kind="TPU v4", most_chips=4096),
  "v5e": _Kind(device_kind="TPU v5e", most_chips=256, flat=True),
  "v5p": _Kind(device_kind="TPU v5p", most_chips=6144),
  "v6e": _Kind(device_kind="TPU v6e", most_chips=256, flat=True),
  "tpu7x": _Kind(device_kind="TPU7x", most_chips=9216, devices_per_chip=2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """One or more equal slices.

  Attributes:
    name: e.g. "v5p:4x4x4".
    num_slices: joined by the data centre's network.
    chip: what one device can do.
    devices_per_chip: 2 of a TPU7x, else 1; figures are of devices.
    devices: all, slice by slice; described, not there.
  """

  name: str
  num_slices: int
  chip: hardware.Chip
  devices_per_chip: int
  devices: Sequence[Any]

  def __str__(self) -> str:
    """E.g. "2 slices of v5p:4x4x4 (128 chips)"."""
    count = len(self.devices) // self.devices_per_chip
    slices = f"{self.num_slices} slices of " if self.num_slices > 1 else ""
    plural = "" if count == 1 else "s"
    return f"{slices}{self.name} ({count} chip{plural})"


def describe(name: str, num_slices: int = 1) -> Topology:
  """Describes slices such as "v5p:4x4x4", "v5e:16x16".

  To be called before JAX is used for anything else: the process then computes
  on the CPU.

  Raises:
    UserError: no such chip, or it has no such slices; libtpu is missing.
  """
  kind = check_slice(name, num_slices)
  chip, shape = _NAME.fullmatch(name).groups()
  if not importlib.util.find_spec("libtpu"):
    raise UserError(
      option("topology"),
      "needs the TPU compiler, libtpu, which is not installed",
      "pip install 'lumiere_jax[tpu]' (no TPU is needed)",
    )
  os.environ.update(
    {k: v for k, v in _NO_QUESTIONS.items() if k not in os.environ}
  )
  jax.config.update("jax_platforms", "cpu")
  options = {"num_slices": num_slices} if num_slices > 1 else {}
  if chip == "v4":  # both of its cores as one device, as JAX runs it
    options["chip_config_name"] = "megacore"
  if shape == "1x1":
    options["chips_per_host_bounds"] = (1, 1, 1)
  description = topologies.get_topology_desc(
    topology_name=name, platform="tpu", **options
  )
  return Topology(
    name=name,
    num_slices=num_slices,
    chip=hardware.chip(kind.device_kind),
    devices_per_chip=kind.devices_per_chip,
    devices=description.devices,
  )


def check_slice(name: str, num_slices: int = 1) -> _Kind:
  """The kind of a slice.

  Raises:
    UserError: no such chip, or it has no such slices.
  """
  found = _NAME.fullmatch(name)
  if not found:
    raise UserError(
      f"{option('topology')}={name!r}",
      "is not CHIP:SHAPE",
      "write v5p:4x4x4 or v5e:16x16",
    )
  check_choice(f"chip of {option('topology')}", found[1], KINDS)
  kind = KINDS[found[1]]
  sizes = tuple(map(int, found[2].split("x")))
  if not _exists(kind, found[2], sizes):
    raise UserError(
      (f"{option('topology')}={name}: {found[1]} has no such slices; take ")
      + (
        f"one of {', '.join(_FLAT)}"
        if kind.flat
        else f"{', '.join(_SMALL_CUBES)}, or AxBxC of multiples of 4 with at "
        f"most {kind.most_chips} chips"
      )
    )
  if num_slices < 1:
    raise UserError(option("num_slices", num_slices), "must be at least 1")
  return kind


def _exists(kind: _Kind, shape: str, sizes: tuple[int, ...]) -> bool:
  if kind.flat:
    return shape in _FLAT
  if shape in _SMALL_CUBES:
    return True
  multiples = len(sizes) == 3 and all(s and s % 4 == 0 for s in sizes)
  return multiples and math.prod(sizes) <= kind.most_chips
