"""What accelerators can do at most.

TPUs by the Cloud TPU documentation of each version; it gives the traffic of
links between chips either one way (1600 Gbit/s of a v5e) or both ways added
(1200 GB/s of a v5p): here it is one way. NVIDIA's by its data sheets, dense.
"""

import dataclasses

GB, GIB = 1e9, 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One device as JAX counts them; a TPU7x chip is two.

  Attributes:
    flops: bfloat16 operations a second.
    hbm_bytes: memory a program may use: what the TPU compiler says when one
      needs more, which is less than the data sheet; of GPUs, the data sheet.
    hbm_bandwidth: bytes a second between memory and device.
    ici_bandwidth: bytes a second that it can send to other chips of its
      slice, over all its links together; of GPUs, by NVLink.
    dcn_bandwidth: bytes a second that it can send to other slices: its share
      of the network cards of its host. Not told for v4, where one card of
      200 Gbit/s for four chips is assumed.
  """

  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float


_V4 = Chip(
  flops=275e12,
  hbm_bytes=30.75 * GIB,
  hbm_bandwidth=1200 * GB,
  ici_bandwidth=300 * GB,
  dcn_bandwidth=6.25 * GB,
)


_V5E = Chip(
  flops=197e12,
  hbm_bytes=15.75 * GIB,
  hbm_bandwidth=819 * GB,
  ici_bandwidth=200 * GB,
  dcn_bandwidth=3.125 * GB,
)


_V5P = Chip(
  flops=459e12,
  hbm_bytes=95.74 * GIB,
  hbm_bandwidth=2765 * GB,
  ici_bandwidth=600 * GB,
  dcn_bandwidth=6.25 * GB,
)


_V6E = Chip(
  flops=918e12,
  hbm_bytes=31.25 * GIB,
  hbm_bandwidth=1638 * GB,
  ici_bandwidth=400 * GB,
  dcn_bandwidth=12.5 * GB,
)


_V7X = Chip(
  flops=1153.5e12,
  hbm_bytes=94.75 * GIB,
  hbm_bandwidth=3690 * GB,
  ici_bandwidth=300 * GB,
  dcn_bandwidth=6.25 * GB,
)


_A100 = Chip(
  flops=312e12,
  hbm_bytes=80 * GB,
  hbm_bandwidth=2039 * GB,
  ici_bandwidth=300 * GB,
  dcn_bandwidth=25 * GB,
)


_H100 = Chip(
  flops=989e12,
  hbm_bytes=80 * GB,
  hbm_bandwidth=3350 * GB,
  ici_bandwidth=450 * GB,
  dcn_bandwidth=50 * GB,
)


CHIPS = {
  "TPU v4": _V4,
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "TPU7x": _V7X,
  "NVIDIA A100": _A100,
  "NVIDIA H100": _H100,
  "NVIDIA H200": dataclasses.replace(
    _H100, hbm_bytes=141 * GB, hbm_bandwidth=4800 * GB
  ),
}
"""By the names that JAX gives devices."""


PEAK_FLOPS = {name: chip.flops for name, chip in CHIPS.items()}
"""Device kind -> bfloat16 operations a second, of one device."""


def chip(device_kind: str) -> Chip | None:
  """A device by the name JAX gives it; None: not known (a CPU).

  The longest name that `device_kind` begins with counts, so that 'NVIDIA H100
  80GB HBM3' is an H100 and 'TPU v5 lite' no v5p.
  """
  names = [name for name in CHIPS if device_kind.startswith(name)]
  return CHIPS[max(names, key=len)] if names else None


def peak_flops(device_kind: str) -> float | None:
  """Peak of a device by the name JAX gives it; None: not known (a CPU)."""
  found = chip(device_kind)
  return found and found.flops
