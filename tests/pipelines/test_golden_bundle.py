"""A bundle of format 1, committed in 2026, loads and samples for ever."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import clip_quantile
from lumiere_jax.diffusion.process import predict
from lumiere_jax.pipelines import sampling
from lumiere_jax.pipelines.pipeline import Pipeline
from lumiere_jax.pipelines.settings import Settings

GOLDEN = Path(__file__).parent / "golden"


def threshold_frames(denoiser, percentile, max_value, part=None):
  """As it was when the video was made: each frame by itself."""

  def thresholded(z, log_snr, cond):
    out = denoiser(z, log_snr, cond)
    frames = jnp.abs(out.x0).reshape(-1, 1, *z.shape[2:])
    s = clip_quantile(frames, percentile).reshape(*z.shape[:2], 1, 1, 1)
    s = jnp.clip(s, 1.0, max_value)
    x0 = jnp.clip(out.x0, -s, s) / s
    return predict("x0", x0, z, log_snr, out.log_var)

  return thresholded


@pytest.fixture
def frame_by_frame(monkeypatch):
  """Thresholds of frames; no program compiled so or otherwise is shared."""
  monkeypatch.setattr(sampling, "threshold", threshold_frames)
  monkeypatch.setattr(sampling, "_ahead", {})
  sampling.run_chunk.clear_cache()
  yield
  sampling.run_chunk.clear_cache()


def corners_kept(stage):
  """The stage, told enlarged videos as it was when the video was made."""
  model = dataclasses.replace(stage.config.model, low_resolution="corners")
  config = dataclasses.replace(stage.config, model=model)
  return dataclasses.replace(stage, config=config)


def test_format_1_gives_the_video_it_gave(frame_by_frame):
  index = json.loads((GOLDEN / "format_1" / "bundle.json").read_text())
  assert index["version"] == 1
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  stage = pipeline.stages["ssr"]
  assert stage.config.model.low_resolution == "half_pixel"
  pipeline.stages["ssr"] = corners_kept(stage)
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
