"""Styles trained with configs/style.py fit the base."""

import dataclasses
import importlib

import numpy as np
import pytest

from configs import style
from lumiere_jax.data.style_folder import write_style_folder
from lumiere_jax.errors import UserError
from lumiere_jax.inference.styles import interpolate_style, read_style, styled
from lumiere_jax.models.lora import kernels
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import BASE, IMAGE, T2I, records

# Size -> the config, and its size, of the model to style.
SIZES = {
  "full": ("base", "FULL"),
  "lora": ("base", "FULL"),
  "shipped": ("shipped", "CONDITIONAL"),
  "shipped_lora": ("shipped", "CONDITIONAL"),
  "tiny": ("base", "TINY"),
  "tiny_lora": ("base", "TINY"),
}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_style_of_its_base(size):
  experiment = Experiment.from_config(style.get_config(size).to_dict())
  assert experiment == getattr(style, size.upper())
  module, name = SIZES[size]
  video = getattr(importlib.import_module(f"configs.{module}"), name)
  image = dataclasses.replace(video.model, temporal=None, cond_channels=0)
  assert experiment.model == image
  pictures = dataclasses.replace(video.diffusion, shift=0.0)
  assert experiment.diffusion == pictures
  assert experiment.text == video.text
  assert experiment.data.resolution == video.data.resolution
  assert (experiment.stage, experiment.data.num_frames) == ("t2i", 1)
  assert experiment.data.source == "files"
  assert experiment.train.trainable == ".*"
  assert (experiment.lora.rank > 0) == size.endswith("lora")
  assert experiment.lora.target == "spatial"


def test_an_unknown_size_suggests_the_nearest():
  with pytest.raises(UserError, match='did you mean "shipped_lora"'):
    style.get_config("shippedlora")


@pytest.mark.parametrize("size", SIZES)
def test_a_style_needs_a_model(tmp_path, size):
  experiment = getattr(style, size.upper())
  words = f"config.init_from={style.T2I} does not exist; give a bundle"
  with pytest.raises(UserError, match=words):
    train(experiment, tmp_path / "w")
  assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("styles") / "pastel"
  write_style_folder(folder, count=12, resolution=8)
  return folder


@pytest.fixture(scope="module")
def original(image_run):
  """Leaves of the image model."""
  return open_bundle(image_run).load("t2i")


@pytest.fixture(scope="module")
def base(original):
  """A base inflated from it, its temporal leaves random."""
  rng = np.random.default_rng(0)
  return {
    path: original[path]
    if path in original
    else rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    for path, leaf in abstract_params(BASE.network).items()
  }


def run_style(size, image_run, pictures, workdir):
  """A tiny size, shrunk to the model of `image_run`."""
  experiment = replace(
    getattr(style, size.upper()),
    init_from=str(image_run),
    model=IMAGE,
    data={
      "path": str(pictures),
      "cache": str(workdir / "cache"),
      "resolution": 8,
      "threads": 1,
    },
    train=dataclasses.asdict(T2I.train) | {"steps": 2},
  )
  train(experiment, workdir)
  return workdir


def differing(one, other):
  return {k for k, leaf in one.items() if not np.array_equal(leaf, other[k])}


def test_a_fine_tuned_model_is_a_style_of_the_base(
  tmp_path, image_run, original, base, pictures
):
  workdir = run_style("tiny", image_run, pictures, tmp_path / "style")
  assert len(records(workdir / "metrics.jsonl")) == 2
  tuned = open_bundle(workdir).load("t2i")
  assert differing(tuned, original) == original.keys()
  read = read_style(workdir)
  in_style = lambda alpha: styled(
    {"base": base}, {"base": BASE.model}, read, alpha
  )["base"]
  assert differing(in_style(0.5), base) == original.keys()
  assert not differing(in_style(0.0), base)
  assert not differing(tuned, in_style(1.0))


def test_an_adapter_of_the_image_model_fits_the_base_inflated_from_it(
  tmp_path, image_run, original, base, pictures
):
  workdir = run_style("tiny_lora", image_run, pictures, tmp_path / "style")
  read = read_style(workdir)
  assert read.adapter.stage == "t2i"
  every = [path for path in original if path.endswith("/kernel")]
  assert kernels(read.adapter.flat) == every
  # Warnings are errors: it knows the leaves that it was trained on.
  got = styled({"base": base}, {"base": BASE.model}, read, 0.5)["base"]
  changed = differing(got, base)
  assert changed
  assert changed <= original.keys()
  # The bundle beside the adapter, merged, is the same style.
  bundle = read_style(workdir / "bundle")
  assert bundle.adapter is None
  expected = interpolate_style(base, bundle.leaves, 0.5)
  for path, leaf in expected.items():
    np.testing.assert_allclose(got[path], leaf, atol=1e-6, err_msg=path)
