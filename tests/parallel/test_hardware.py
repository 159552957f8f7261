"""Peak figures of chips, by JAX's names of device kinds."""

import pytest

from lumiere_jax.parallel.hardware import CHIPS, chip, peak_flops


@pytest.mark.parametrize(
  ("kind", "tflops", "hbm_gib", "ici_gbit", "dcn_gbit"),
  [
    ("TPU v4", 275, 30.75, 2400, 50),
    ("TPU v5 lite", 197, 15.75, 1600, 25),
    ("TPU v5", 459, 95.74, 4800, 50),
    ("TPU v5p", 459, 95.74, 4800, 50),
    ("TPU v6 lite", 918, 31.25, 3200, 100),
    ("TPU7x", 1153.5, 94.75, 2400, 50),
  ],
)
def test_figures(kind, tflops, hbm_gib, ici_gbit, dcn_gbit):
  found = chip(kind)
  assert found.flops == peak_flops(kind) == tflops * 1e12
  assert found.hbm_bytes / 2**30 == pytest.approx(hbm_gib)
  assert found.ici_bandwidth * 8 == ici_gbit * 1e9
  assert found.dcn_bandwidth * 8 == dcn_gbit * 1e9


def test_the_longest_name_counts():
  assert chip("NVIDIA H100 80GB HBM3") is CHIPS["NVIDIA H100"]
  assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
  assert chip("TPU v5 lite") is not chip("TPU v5")
  assert chip("cpu") is None
  assert peak_flops("cpu") is None
