"""Benchmarks must not use the fast, unoptimised compilation of the tests."""

from pathlib import Path

from benchmarks.speed.pairing import ROOT


def test_the_speed_benchmark_imports_no_tests():
  files = sorted(Path(ROOT, "benchmarks", "speed").glob("*.py"))
  assert files
  for file in files:
    assert "from tests" not in file.read_text(), file
