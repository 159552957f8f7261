"""Styles trained with configs/style.py fit the base."""

import dataclasses

import numpy as np
import pytest

from configs import base as base_configs
from configs import shipped, style
from lumiere_jax.data.style_folder import write_style_folder
from lumiere_jax.errors import UserError
from lumiere_jax.inference.styles import interpolate_style, read_style, styled
from lumiere_jax.models.lora import kernels
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.loop import train
from tests.conftest import replace
from tests.training.conftest import BASE, IMAGE, T2I, load, records

# Size -> the config of the model to style.
SIZES = {
  "full": base_configs.FULL,
  "lora": base_configs.FULL,
  "shipped": shipped.CONDITIONAL,
  "shipped_lora": shipped.CONDITIONAL,
  "tiny": base_configs.TINY,
  "tiny_lora": base_configs.TINY,
}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_style_of_its_base(size, tmp_path):
  experiment = Experiment.from_config(style.get_config(size).to_dict())
  assert experiment == getattr(style, size.upper())
  video = SIZES[size]
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
  words = f"config.init_from={style.T2I} does not exist; give a bundle"
  with pytest.raises(UserError, match=words):
    train(experiment, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_an_unknown_size_suggests_the_nearest():
  with pytest.raises(UserError, match='did you mean "shipped_lora"'):
    style.get_config("shippedlora")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("styles") / "pastel"
  write_style_folder(folder, count=12, resolution=8)
  return folder


@pytest.fixture(scope="module")
def original(image_run):
  """Leaves of the image model."""
  return load(image_run, "t2i")


@pytest.fixture(scope="module")
def base(original):
  """A base inflated from it, its temporal leaves random."""
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
  shapes = abstract_params(BASE.network)
  return {k: draw(leaf) for k, leaf in shapes.items()} | original


@pytest.fixture
def run_style(tmp_path, image_run, pictures):
  """Trains a tiny size, shrunk to the model of `image_run`."""

  def run(experiment):
    workdir = tmp_path / "style"
    cache = str(tmp_path / "cache")
    folder = {"path": str(pictures), "cache": cache, "threads": 1}
    small = replace(
      experiment,
      init_from=str(image_run),
      model=IMAGE,
      data={"resolution": 8, **folder},
      train=dataclasses.asdict(T2I.train) | {"steps": 2},
    )
    train(small, workdir)
    return workdir

  return run


def differing(one, other):
  return {k for k, leaf in one.items() if not np.array_equal(leaf, other[k])}


def test_a_fine_tuned_model_is_a_style_of_the_base(run_style, original, base):
  workdir = run_style(style.TINY)
  assert len(records(workdir / "metrics.jsonl")) == 2
  tuned, read = load(workdir, "t2i"), read_style(workdir)
  assert differing(tuned, original) == original.keys()
  none, half, full = (
    styled({"base": base}, {"base": BASE.model}, read, alpha)["base"]
    for alpha in (0.0, 0.5, 1.0)
  )
  assert not differing(none, base)
  assert differing(half, base) == original.keys()
  assert not differing(tuned, full)


def test_an_adapter_of_the_image_model_fits_the_base_inflated_from_it(
  run_style, original, base
):
  workdir = run_style(style.TINY_LORA)
  read = read_style(workdir)
  assert read.adapter.stage == "t2i"
  every = [path for path in original if path.endswith("/kernel")]
  assert kernels(read.adapter.flat) == every
  # Warnings are errors: it knows the leaves that it was trained on.
  got = styled({"base": base}, {"base": BASE.model}, read, 0.5)["base"]
  assert set() < differing(got, base) <= original.keys()
  # The bundle beside the adapter, merged, is the same style.
  bundle = read_style(workdir / "bundle")
  assert bundle.adapter is None
  expected = interpolate_style(base, bundle.leaves, 0.5)
  for path, leaf in expected.items():
    np.testing.assert_allclose(got[path], leaf, atol=1e-6, err_msg=path)
