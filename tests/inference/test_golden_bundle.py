"""A bundle of format 1, committed in 2026, loads and samples for ever."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import clip_quantile
from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.inference import stage_sampler
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
SHORT = "a small red circle moves left"
FULL = f"{SHORT} and a large blue square moves right and up"  # all 16 tokens


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
  monkeypatch.setattr(stage_sampler, "threshold", threshold_frames)
  monkeypatch.setattr(stage_sampler, "_ahead", {})
  stage_sampler.jitted_chunk().clear_cache()
  yield
  stage_sampler.jitted_chunk().clear_cache()


def corners_kept(stage):
  """The stage with the upsampling of the time when the video was made."""
  model = dataclasses.replace(stage.config.model, low_resolution="corners")
  config = dataclasses.replace(stage.config, model=model)
  return dataclasses.replace(stage, config=config)


@pytest.mark.parametrize(
  ("prompt", "name", "atol"),
  [
    # As it was first committed. Padding then counted in the norms of the text,
    # by mistake: fixing it moved the video by 0.0009 at most.
    (SHORT, "format_1", 1e-3),
    (SHORT, "format_1_padding", 1e-4),  # made when that was fixed
    # Made before: without padding nothing has changed.
    (FULL, "format_1_full_caption", 1e-4),
  ],
)
def test_format_1_gives_the_video_it_gave(frame_by_frame, prompt, name, atol):
  index = json.loads((GOLDEN / "format_1" / "bundle.json").read_text())
  assert index["version"] == 1
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  stage = pipeline.stages["ssr"]
  assert stage.config.model.low_resolution == "half_pixel"
  pipeline.stages["ssr"] = corners_kept(stage)
  # The hash that runs started from it know the text encoder by.
  assert pipeline.text.identity == index["parts"]["text"]["meta"]["identity"]
  assert pipeline.text.tokenize([prompt])[1].all() == (prompt == FULL)
  video = pipeline.sample(
    prompt,
    seed=1,
    settings=Settings(
      steps=4, sampler="ddpm", grid="schedule", window=2, overlap=0
    ),
  )
  golden = np.load(GOLDEN / f"{name}.npy")
  assert golden.std() > 0.1
  np.testing.assert_allclose(video, golden, atol=atol)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "heun"])
def test_a_base_of_format_1_gives_the_same_video_on_the_grid_of_then(sampler):
  """Made at commit f301370, of a caption without padding."""
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  settings = Settings(
    steps=6,
    sampler=sampler,
    grid="schedule",
    max_value=1.0,
    guidance_interval=(0.2, 0.8),
  )
  video = pipeline.base_alone.sample(FULL, seed=1, settings=settings)
  golden = np.load(GOLDEN / "format_1_base.npz")[sampler]
  np.testing.assert_allclose(video, golden, atol=1e-5)


def test_a_bundle_of_format_1_is_sampled_on_a_grid_of_today():
  pipeline = Pipeline.from_pretrained(GOLDEN / "format_1")
  levels = pipeline.plan(Settings(steps=6))["base"].log_snrs
  assert levels[0] == -np.inf
  steps = np.diff(levels[1:-1])
  np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
