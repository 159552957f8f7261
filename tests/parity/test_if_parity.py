"""Imported DeepFloyd IF against diffusers: networks, and both pipelines."""

import numpy as np
import pytest

from tests.references import ours, trajectories, unets

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def theirs():
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  from tests.references import make_if

  return make_if


@pytest.mark.parametrize("name", unets.CONFIGS)
@pytest.mark.parametrize("seed", [100, 101])
def test_imported_networks_agree(theirs, name, seed, tmp_path):
  config = unets.CONFIGS[name]
  model, _ = theirs.unet(config, seed)
  model.save_pretrained(
    tmp_path / "unet", max_shard_size=["1GB", "1MB"][seed % 2]
  )
  scheduler = trajectories.SCHEDULER | {
    "variance_type": "learned_range"
    if config["out_channels"] == 6
    else "fixed_small"
  }
  theirs.diffusers.DDPMScheduler.from_config(scheduler).save_pretrained(
    tmp_path / "scheduler"
  )
  assert len([*tmp_path.glob("unet/*.safetensors")]) > seed % 2
  expected = theirs.output(model, config)
  error = ours.difference(ours.output(tmp_path), expected)
  print(f"{name}: {error:.1e}")
  assert error < 1e-4


def test_ten_steps_of_both_pipelines_agree(theirs, tmp_path):
  folders = {name: tmp_path / name for name in trajectories.STAGES}
  for name, folder in folders.items():
    theirs.write_stage(name, folder)
  pipeline = ours.import_all(
    [*folders.values()], ours.write_t5(tmp_path / "t5"), tmp_path / "bundle"
  )
  image = None
  for name, slot in (("IF-I", "base"), ("IF-II", "ssr")):
    expected = theirs.trajectory(name, folders[name], image)
    got = ours.trajectory(pipeline, slot, image)
    assert got.shape == expected.shape
    error = np.abs(got - expected).max()
    print(f"{name}: {error:.1e}")
    assert error < 1e-3
    image = expected[-1]
