"""A stage's network as a Denoiser, and the config of its process."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, ssr, ssr_image
from lumiere_jax.diffusion.process import predict
from lumiere_jax.diffusion.schedule import Linear, SquaredCosCapV2
from lumiere_jax.models.unet import LOW_RESOLUTION
from lumiere_jax.pipelines import stage
from lumiere_jax.pipelines.stage import (
  DiffusionConfig,
  StageConfig,
  VideoConfig,
  network_denoiser,
)
from lumiere_jax.typing import UserError
from tests.conftest import make_cond


def test_six_channels_are_a_prediction_and_its_variance(rng, monkeypatch):
  """As IF: eps, then v in [-1, 1]; the network is told step k as k / 1000."""
  eps, v = jnp.float32(rng.uniform(-1, 1, (2, 2, 1, 4, 4, 3)))

  class Network:
    def __init__(self, config):
      self.channels = config.out_channels

    def apply(self, variables, z, time, cond, *, bypass_temporal):
      np.testing.assert_array_equal(time, t)
      return jnp.concatenate([eps, v], axis=-1)[..., : self.channels]

  monkeypatch.setattr(stage, "UNet", Network)
  t, z = jnp.array([0.3, 0.999]), jnp.float32(rng.standard_normal(eps.shape))
  log_snr = SquaredCosCapV2().log_snr(t)
  for channels in (3, 6):
    config = StageConfig(
      model=dataclasses.replace(common.TINY, out_channels=channels),
      diffusion=DiffusionConfig(schedule="squaredcos_cap_v2", prediction="eps"),
      video=VideoConfig(num_frames=1, fps=16.0, resolution=(4, 4)),
    )
    got = network_denoiser(config, {})(z, log_snr, make_cond(2))
    want = predict("eps", eps, z, log_snr)
    for form in ("x0", "eps", "v"):
      np.testing.assert_array_equal(getattr(got, form), getattr(want, form))
    if channels == 3:
      assert got.log_var is None
    else:  # a place between 0, the smallest variance, and 1, the largest
      np.testing.assert_allclose(got.log_var, (v + 1) / 2, atol=1e-6)


def test_every_schedule_takes_a_shift():
  config = DiffusionConfig(schedule="linear", shift=-1.0)
  assert config.make_schedule() == Linear(shift=-1.0)
  config = DiffusionConfig(schedule="squaredcos_cap_v2", shift=0.5)
  assert config.make_schedule() == SquaredCosCapV2(shift=0.5)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"schedule": "squaredcos"}, 'did you mean "squaredcos_cap_v2"'),
    ({"loss_weight": "minsnr"}, 'loss_weight=.*did you mean "min_snr"'),
    ({"min_snr_gamma": 0.0}, "min_snr_gamma=0.0 must be above 0"),
    ({"caption_dropout": 2.0}, "caption_dropout=2.0 is not in"),
  ],
)
def test_bad_values_are_user_errors(changes, words):
  with pytest.raises(UserError, match=f"config.diffusion.*{words}") as error:
    DiffusionConfig(**changes)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("experiment", "expected"),
  [
    (ssr.TINY, "half_pixel"),
    (ssr.FULL, "half_pixel"),
    (ssr_image.FULL, "half_pixel"),
    (ssr.IF_TINY, "corners"),
    (ssr.IF, "corners"),
    (ssr_image.IF, "corners"),
  ],
)
def test_old_bundles_were_enlarged_as_their_kind_was(experiment, expected):
  """They do not say how; IF's schedule tells who trained the network."""
  config = experiment.sampling
  assert config.model.low_resolution == expected
  meta = json.loads(json.dumps(config.to_meta()))
  assert meta["model"].pop("low_resolution") == expected
  assert StageConfig.from_meta(meta, "old") == config
  for said in LOW_RESOLUTION:  # which goes first
    meta["model"]["low_resolution"] = said
    assert StageConfig.from_meta(meta, "new").model.low_resolution == said


def test_an_alignment_that_there_is_not():
  with pytest.raises(UserError, match=r'low_resolution.*mean "corners"'):
    dataclasses.replace(common.TINY_SSR, low_resolution="corner")
