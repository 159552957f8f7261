"""Windows sharded over devices give the video of one device."""

import numpy as np
import pytest

from tests.scale.conftest import run_module
from tests.scale.windows import FRAMES, MESHES

pytestmark = pytest.mark.scale


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  path = tmp_path_factory.mktemp("windows") / "videos.npz"
  run_module("windows", path)
  with np.load(path) as file:
    return dict(file)


@pytest.mark.parametrize("mesh", ["x".join(map(str, m)) for m in MESHES])
def test_equal_to_rounding(videos, mesh):
  alone = videos["alone"]
  assert alone.shape[1] == FRAMES and alone.std() > 0.1
  np.testing.assert_allclose(videos[mesh], alone, atol=1e-4)


@pytest.mark.parametrize("mesh", ["x".join(map(str, m)) for m in MESHES])
def test_thresholds_are_bit_equal(videos, mesh):
  """Each frame counts once, whatever its device."""
  alone = videos["thresholded alone"]
  assert 0.9 < np.quantile(np.abs(alone), 0.94) < 1
  np.testing.assert_array_equal(videos[f"thresholded {mesh}"], alone)
