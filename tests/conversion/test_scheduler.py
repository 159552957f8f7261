"""What a network is conditioned on, and diffusers' pipelines can follow."""

import dataclasses

import pytest

from configs import common
from lumiere_jax.conversion.diffusers import to_scheduler
from lumiere_jax.errors import UserError
from lumiere_jax.stages.config import StageConfig, VideoConfig


def stage(model, **changes):
  return StageConfig(
    model=dataclasses.replace(model, **changes),
    diffusion=dataclasses.replace(common.IF_DIFFUSION, shift=-4.4),
    video=VideoConfig(num_frames=1, fps=16.0, resolution=(16, 16)),
  )


def test_shifted_training_noise_is_no_hindrance():
  assert to_scheduler(stage(common.IF_TINY))["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
  ("model", "changes", "words"),
  [
    (
      common.IF_TINY,
      {"noise_embedding": "cosine"},
      "needs 'squaredcos_cap_v2'",
    ),
    (common.IF_TINY, {"noise_embedding_shift": 1.0}, "shift=1.0 has no count"),
    (common.IF_TINY_SSR, {"low_resolution": "half_pixel"}, "needs 'corners'"),
  ],
)
def test_what_has_no_counterpart_is_named(model, changes, words):
  with pytest.raises(UserError, match=words):
    to_scheduler(stage(model, **changes))
