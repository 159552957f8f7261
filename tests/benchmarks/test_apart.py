"""What is measured must not be compiled as the tests are, in a hurry."""

from pathlib import Path

from benchmarks.speed.pairing import ROOT


def test_the_speed_benchmark_is_apart_from_the_tests():
  files = sorted(Path(ROOT, "benchmarks", "speed").glob("*.py"))
  assert files
  for file in files:
    assert "from tests" not in file.read_text(), file
