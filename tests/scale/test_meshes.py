"""Training on any mesh of eight devices equals training on one."""

import numpy as np
import pytest

from tests.scale.conftest import run_module
from tests.scale.meshes import RUNS, SHAPES, STEPS

pytestmark = pytest.mark.scale
NAMES = [
  (model, "x".join(map(str, shape)))
  for model, (_, shapes) in RUNS.items()
  for shape in shapes
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  path = tmp_path_factory.mktemp("meshes") / "results.npz"
  run_module("meshes", path)
  with np.load(path) as file:
    return dict(file)


def test_all_ten_meshes_of_eight_are_tested():
  assert len(SHAPES) == 10


# Muon amplifies rounding: it normalises all directions.
@pytest.mark.parametrize(
  "optimizer, rtol",
  [("sgd", 1e-6), ("adam", 1e-5), ("muon", 1e-3), ("schedule_free", 1e-5)],
)
@pytest.mark.parametrize("model, mesh", NAMES)
def test_losses_of_ten_steps(results, model, mesh, optimizer, rtol):
  expected = results[f"{model}/1x1x1/{optimizer}/losses"]
  assert len(expected) == STEPS
  assert len(np.unique(expected)) == STEPS
  found = results[f"{model}/{mesh}/{optimizer}/losses"]
  np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("model, mesh", NAMES)
def test_weights_after_ten_steps_of_sgd(results, model, mesh):
  prefix = f"{model}/1x1x1/sgd/weights/"
  leaves = [k.removeprefix(prefix) for k in results if k.startswith(prefix)]
  assert len(leaves) > 50
  for leaf in leaves:
    np.testing.assert_allclose(
      results[f"{model}/{mesh}/sgd/weights/{leaf}"],
      results[prefix + leaf],
      rtol=1e-5,
      atol=1e-5,
      err_msg=leaf,
    )
