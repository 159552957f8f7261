"""A stage's network as a Denoiser, and the config of its process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.process import predict
from lumiere_jax.diffusion.schedule import Linear, SquaredCosCapV2
from lumiere_jax.models.inflate import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.pipelines.stage import (
  DiffusionConfig,
  StageConfig,
  VideoConfig,
  network_denoiser,
)
from lumiere_jax.typing import UserError
from tests.conftest import make_cond, random_leaves, small_config


def test_six_channels_are_a_prediction_and_its_variance(rng):
  """As IF: eps, then v in [-1, 1]; the network is told step k as k / 1000."""
  model = small_config(
    channels=(8, 16),
    num_res_blocks=(1, 1),
    attention=("none", "cross"),
    temporal=None,
    out_channels=6,
  )
  config = StageConfig(
    model=model,
    diffusion=DiffusionConfig(schedule="squaredcos_cap_v2", prediction="eps"),
    video=VideoConfig(num_frames=1, fps=16.0, resolution=(8, 8)),
  )
  params, cond = random_leaves(model), make_cond(2)
  z = jnp.float32(rng.standard_normal((2, 1, 8, 8, 3)))
  t = jnp.array([0.3, 0.999])
  log_snr = SquaredCosCapV2().log_snr(t)

  @jax.jit
  def both(params):
    network = UNet(model).apply({"params": unflatten(params)}, z, t, cond)
    return network, network_denoiser(config, params)(z, log_snr, cond)

  output, got = both(params)
  eps, v = output[..., :3], output[..., 3:]
  assert np.abs(v).max() > 0.1
  np.testing.assert_allclose(got.log_var, (v + 1) / 2, rtol=1e-5, atol=1e-6)
  want = predict("eps", eps, z, log_snr)
  for form in ("x0", "eps", "v"):
    np.testing.assert_allclose(
      getattr(got, form), getattr(want, form), rtol=1e-4, atol=1e-4
    )


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
