"""Imported DeepFloyd IF networks and pipelines against stored outputs of
diffusers (tests/references; `make parity` compares with diffusers itself)."""

import json

import numpy as np
import pytest

from tests.references import ours, trajectories, unets

MADE = json.loads((unets.FOLDER / "made.json").read_text())["cases"]


@pytest.mark.parametrize("name", unets.CONFIGS)
def test_imported_networks_equal_diffusers(name, tmp_path):
  case, config = MADE[name], unets.CONFIGS[name]
  tensors = unets.weights(case["shapes"], case["seed"])
  learned = config["out_channels"] == 6
  variance = "learned_range" if learned else "fixed_small"
  folder = unets.write_folder(
    tmp_path,
    config,
    tensors,
    trajectories.SCHEDULER | {"variance_type": variance},
  )
  theirs = np.load(unets.FOLDER / f"{case['seed']}.npy")
  error = ours.difference(ours.output(folder), theirs)
  print(f"{name}: {error:.1e}")
  assert error < 1e-4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  folder = tmp_path_factory.mktemp("if")
  made = json.loads((trajectories.FOLDER / "made.json").read_text())["cases"]
  for name, config in trajectories.STAGES.items():
    case = made[name]
    tensors = unets.weights(case["shapes"], case["seed"])
    scheduler = trajectories.SCHEDULERS[name]
    unets.write_folder(folder / name, config, tensors, scheduler)
  stages = [folder / name for name in trajectories.STAGES]
  t5 = ours.write_t5(folder / "t5")
  return ours.import_all(stages, t5, folder / "bundle")


def test_image_of_both_stages_equals_diffusers(pipeline):
  """With what the second stage makes of the rounding of the first."""
  theirs = np.load(trajectories.FOLDER / "IF-II.npy")[-1]
  error = np.abs(ours.picture(pipeline) - theirs).max()
  print(f"largest difference of the picture: {error:.1e}")
  assert error < 1e-2


def test_ten_steps_equal_diffusers_pipelines(pipeline):
  first, second = (
    np.load(trajectories.FOLDER / f"{name}.npy") for name in trajectories.STAGES
  )
  check_steps(ours.trajectory(pipeline, "base"), first)
  check_steps(ours.trajectory(pipeline, "ssr", first[-1]), second)


def check_steps(mine, theirs):
  assert mine.shape == theirs.shape
  error = np.abs(mine - theirs).max((1, 2, 3, 4))
  print("largest difference after each step:", *(f"{e:.1e}" for e in error))
  assert error.max() < 1e-3


def test_bundle_has_the_defaults_of_ifs_pipelines(pipeline):
  base, ssr = (pipeline.stages[s].config.defaults for s in ("base", "ssr"))
  assert (base.sampler, base.steps, base.guidance_scale) == ("ddpm", 100, 7.0)
  assert (base.percentile, base.max_value) == (0.95, 1.5)
  assert (ssr.sampler, ssr.steps, ssr.guidance_scale) == ("ddpm", 50, 4.0)
  assert (ssr.max_value, ssr.noise_level) == (1.0, 0.25)
