"""Peak figures of accelerators.

TPUs: from the Cloud TPU documentation of each version, which gives link
bandwidth either one way (1600 Gbit/s of a v5e) or both ways added (1200 GB/s of
a v5p); here it is one way. NVIDIA: from data sheets, without sparsity.
"""

import dataclasses

GB, GIB = 1e9, 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
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
  return found and found.flops
