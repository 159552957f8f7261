"""TPU topologies by name, described by libtpu without TPUs."""

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

# libtpu detects the machine's TPUs before it describes any. These values, which
# do not matter, avoid queries of Google Cloud's metadata server (minutes where
# there is none) and warnings.
_LIBTPU_ENV = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  # Several processes can plan at once, as none uses a TPU.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
  """A TPU version.

  Attributes:
    device_kind: JAX's name.
    shapes: its small slices.
    max_chips: of AxBxC slices of multiples of 4; 0: it has none.
    devices_per_chip: 2 for TPU7x, else 1.
  """

  device_kind: str
  shapes: tuple[str, ...] = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
  max_chips: int = 0
  devices_per_chip: int = 1


KINDS = {
  "v4": _Kind(device_kind="TPU v4", max_chips=4096),
  "v5e": _Kind(device_kind="TPU v5e", shapes=_FLAT),
  "v5p": _Kind(device_kind="TPU v5p", max_chips=6144),
  "v6e": _Kind(device_kind="TPU v6e", shapes=_FLAT),
  "tpu7x": _Kind(device_kind="TPU7x", max_chips=9216, devices_per_chip=2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """One or more equal slices.

  Attributes:
    name: e.g. "v5p:4x4x4".
    num_slices: joined by the data-centre network.
    chip: peak figures of one device.
    devices_per_chip: as JAX counts them.
    devices: of all slices; described, not present.
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

  Call it before any other use of JAX: the process then computes on the CPU.
  """
  kind = check_slice(name)
  if not importlib.util.find_spec("libtpu"):
    raise UserError(
      option("topology"),
      "needs the TPU compiler, libtpu, which is not installed",
      "install it with pip install 'lumiere_jax[tpu]' (no TPU is needed)",
    )
  for variable, value in _LIBTPU_ENV.items():
    os.environ.setdefault(variable, value)
  jax.config.update("jax_platforms", "cpu")
  options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if name.startswith("v4:"):  # both cores as one device, as in JAX
    options["chip_config_name"] = "megacore"
  if name.endswith(":1x1"):
    options["chips_per_host_bounds"] = (1, 1, 1)
  description = topologies.get_topology_desc(
    topology_name=name, platform="tpu", **options
  )
  return Topology(
    name=name,
    num_slices=num_slices,
    chip=hardware.CHIPS[kind.device_kind],
    devices_per_chip=kind.devices_per_chip,
    devices=description.devices,
  )


def check_slice(name: str) -> _Kind:
  """The kind of a slice; raises a UserError if it does not exist."""
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not found:
    raise UserError(
      option("topology", repr(name)),
      "is not CHIP:SHAPE",
      "give one such as v5p:4x4x4 or v5e:16x16",
    )
  chip, shape = found.groups()
  check_choice(f"chip of {option('topology')}", chip, KINDS)
  kind = KINDS[chip]
  sizes = [int(size) for size in shape.split("x")]
  cube = len(sizes) == 3 and all(size and size % 4 == 0 for size in sizes)
  fits = cube and math.prod(sizes) <= kind.max_chips
  if shape not in kind.shapes and not fits:
    more = f", or AxBxC of multiples of 4 with at most {kind.max_chips} chips"
    raise UserError(
      option("topology", name),
      f"does not exist: {chip} has no such slices",
      f"use one of {', '.join(kind.shapes)}{more if kind.max_chips else ''}",
    )
  return kind
