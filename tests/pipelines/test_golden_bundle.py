"""A bundle of format 1, committed in 2026, loads and samples for ever."""

import json
from pathlib import Path

import numpy as np
import pytest

from lumiere_jax.pipelines.cascade import Cascade
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings

GOLDEN = Path(__file__).parent / "golden"


def test_format_1_gives_the_video_it_gave():
  index = json.loads((GOLDEN / "format_1" / "bundle.json").read_text())
  assert index["version"] == 1
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  # The hash that runs started from it know the text encoder by.
  assert pipeline.text.identity == index["parts"]["text"]["meta"]["identity"]
  video = pipeline.sample(
    ["a small red circle moves left"],
    seeds=[1],
    settings=Settings(
      steps=4, sampler="ddpm", grid="schedule", window=2, overlap=0
    ),
  )
  golden = np.load(GOLDEN / "format_1.npy")
  assert golden.std() > 0.1
  np.testing.assert_allclose(video, golden, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "heun"])
def test_a_base_of_format_1_gives_the_same_video_on_the_grid_of_then(sampler):
  """Byte for byte on the machine that made them, at commit f301370."""
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  base = Cascade(pipeline.text, {"base": pipeline.stages["base"]})
  settings = Settings(
    steps=6,
    sampler=sampler,
    grid="schedule",
    max_value=1.0,
    guidance_interval=(0.2, 0.8),
  )
  video = base.sample(
    ["a small red circle moves left"], seeds=[1], settings=settings
  )
  golden = np.load(GOLDEN / "format_1_base.npz")[sampler]
  np.testing.assert_allclose(video, golden, atol=2e-6)


def test_a_bundle_of_format_1_is_sampled_on_a_grid_of_today():
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  levels = pipeline.log_snrs("base", Settings(steps=6))
  assert levels[0] == -np.inf
  steps = np.diff(levels[1:-1])
  np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
