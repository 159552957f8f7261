"""What accelerators can do at most."""

PEAK_FLOPS = {
  # Cloud TPU documentation; a TPU7x chip is two devices of 1153.5 each.
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  # NVIDIA's data sheets, dense.
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}
"""Device kind -> bfloat16 operations a second, of one device."""


def peak_flops(device_kind: str) -> float | None:
  """Peak of a device by the name JAX gives it; None: not known (a CPU).

  The longest name that `device_kind` begins with counts, so that 'NVIDIA H100
  80GB HBM3' is an H100 and 'TPU v5 lite' no v5p.
  """
  names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
  return PEAK_FLOPS[max(names, key=len)] if names else None
