"""Collectives in compiled programs."""

import json

import pytest

from tests.scale.conftest import run_module
from tests.scale.experiments import SSR

pytestmark = pytest.mark.scale
PROGRAMS = ("base", "ssr", "windows")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  path = tmp_path_factory.mktemp("programs") / "collectives.json"
  run_module("programs", path)
  return json.loads(path.read_text())


def of_kind(program, kind):
  return [c for c in program if c["kind"] == kind]


def is_weight(collective):
  """`gather_weight` names its all-gathers so."""
  return collective["of"].endswith("sharding_constraint")


@pytest.mark.parametrize("name", PROGRAMS)
def test_only_weights_and_keys_and_values_are_gathered(programs, name):
  gathered = of_kind(programs[name], "all-gather")
  assert any(map(is_weight, gathered))
  for collective in gathered:
    if is_weight(collective):
      # A weight has no axis of samples, frames, rows and columns.
      assert all(len(dims) <= 4 for dims in collective["results"])
    else:
      assert "attention" in collective["of"], collective


@pytest.mark.parametrize("name", PROGRAMS)
def test_convolutions_exchange_edge_rows(programs, name):
  permuted = of_kind(programs[name], "collective-permute")
  assert any("conv_general_dilated" in c["of"] for c in permuted)


def test_windows_exchange_only_their_overlap(programs):
  """Two frames of eight: z and conditioning one way, predictions back."""
  height, width = SSR.sampling.video.resolution
  sent = [
    dims
    for c in of_kind(programs["windows"], "collective-permute")
    if "ppermute" in c["of"]
    for dims in c["results"]
  ]
  assert sent
  for dims in sent:
    assert dims == [1, 2, height // 2, width, 3]  # rows on two devices
