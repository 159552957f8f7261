"""Peak figures of accelerators.

TPUs: from the Cloud TPU documentation of each version, which gives link
bandwidth either one way (1600 Gbit/s of a v5e) or both ways added (1200 GB/s of
a v5p); here it is one way. NVIDIA: from data sheets, without sparsity.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as JAX counts them; a TPU7x chip is two.

  Attributes:
    flops: bfloat16 operations per second.
    hbm_bytes: memory available to a program: of TPUs, the limit that the
      compiler enforces, which is below the data sheet; of GPUs, the data sheet.
    hbm_bandwidth: bytes per second between memory and device.
    ici_bandwidth: bytes per second to other chips of the slice, over all links
      together; of GPUs, over NVLink.
    dcn_bandwidth: bytes per second to other slices: the share of the host's
      network cards. Undocumented for v4: assumes 200 Gbit/s per four chips.
  """

  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float


_V5E = Chip(197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9)
_V5P = Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 6.25e9)
_V6E = Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 12.5e9)

CHIPS = {
  "TPU v4": Chip(275e12, 30.75 * GIB, 1200e9, 300e9, 6.25e9),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "TPU7x": Chip(1153.5e12, 94.75 * GIB, 3690e9, 300e9, 6.25e9),
  "NVIDIA A100": Chip(312e12, 80e9, 2039e9, 300e9, 25e9),
  "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9),
  "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9),
}
"""By JAX's names of device kinds."""


def chip(device_kind: str) -> Chip | None:
  """A device by JAX's name of its kind; None: unknown (a CPU).

  The longest matching prefix counts: 'NVIDIA H100 80GB HBM3' is an H100, and
  'TPU v5 lite' is not a v5p.
  """
  names = [name for name in CHIPS if device_kind.startswith(name)]
  return CHIPS[max(names, key=len)] if names else None


def peak_flops(device_kind: str) -> float | None:
  """Bfloat16 operations per second of a device; None: unknown (a CPU)."""
  found = chip(device_kind)
  return found.flops if found else None
