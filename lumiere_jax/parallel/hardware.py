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


def _chip(
  tflops: float, hbm_bytes: float, hbm: float, ici: float, dcn: float
) -> Chip:
  """A chip by TFLOP/s, bytes of memory, and bandwidths in GB/s."""
  return Chip(
    flops=tflops * 1e12,
    hbm_bytes=hbm_bytes,
    hbm_bandwidth=hbm * GB,
    ici_bandwidth=ici * GB,
    dcn_bandwidth=dcn * GB,
  )


_V5E = _chip(197, 15.75 * GIB, 819, 200, 3.125)
_V5P = _chip(459, 95.74 * GIB, 2765, 600, 6.25)
_V6E = _chip(918, 31.25 * GIB, 1638, 400, 12.5)

CHIPS = {
  "TPU v4": _chip(275, 30.75 * GIB, 1200, 300, 6.25),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "TPU7x": _chip(1153.5, 94.75 * GIB, 3690, 300, 6.25),
  "NVIDIA A100": _chip(312, 80 * GB, 2039, 300, 25),
  "NVIDIA H100": _chip(989, 80 * GB, 3350, 450, 50),
  "NVIDIA H200": _chip(989, 141 * GB, 4800, 450, 50),
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
