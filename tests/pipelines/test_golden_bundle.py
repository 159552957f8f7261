"""A bundle of format 1, committed in 2026, loads and samples for ever."""

import json
from pathlib import Path

import numpy as np

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
    settings=Settings(steps=4, sampler="ddpm", window=2, overlap=0),
  )
  golden = np.load(GOLDEN / "format_1.npy")
  assert golden.std() > 0.1
  np.testing.assert_allclose(video, golden, atol=1e-3)
