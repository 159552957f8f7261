"""Eight devices train as one does, on every mesh there is of them."""

import numpy as np
import pytest

from tests.scale.conftest import run_module
from tests.scale.meshes import SHAPES, STEPS

pytestmark = pytest.mark.scale
NAMES = ["x".join(map(str, shape)) for shape in SHAPES]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  path = tmp_path_factory.mktemp("meshes") / "results.npz"
  run_module("meshes", path)
  with np.load(path) as file:
    return dict(file)


def test_all_ten_meshes_of_eight_are_tried():
  assert len(NAMES) == 10


@pytest.mark.parametrize("optimizer, rtol", [("sgd", 1e-6), ("adam", 1e-5)])
@pytest.mark.parametrize("mesh", NAMES)
def test_losses_of_ten_steps(results, mesh, optimizer, rtol):
  expected = results[f"1x1x1/{optimizer}/losses"]
  assert len(expected) == STEPS
  assert len(np.unique(expected)) == STEPS
  found = results[f"{mesh}/{optimizer}/losses"]
  np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("mesh", NAMES)
def test_weights_after_ten_steps_of_sgd(results, mesh):
  prefix = "1x1x1/sgd/weights/"
  leaves = [k.removeprefix(prefix) for k in results if k.startswith(prefix)]
  assert len(leaves) > 100
  for leaf in leaves:
    np.testing.assert_allclose(
      results[f"{mesh}/sgd/weights/{leaf}"],
      results[prefix + leaf],
      rtol=1e-5,
      atol=1e-5,
      err_msg=leaf,
    )
