import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.prediction import (
  KINDS,
  Denoiser,
  add_noise,
  predict,
  to_v,
)
from lumiere_jax.errors import UserError
from tests.diffusion.conftest import scales

LOG_SNR = np.array([-20, -15, -6, -1, 0, 1, 6, 15, 20], np.float32)
SHAPE = (len(LOG_SNR), 2, 3, 4, 3)


def truth():
  """x0, eps, z, v in float64 and alpha, sigma: the definitions themselves."""
  rng = np.random.default_rng(0)
  x0 = rng.uniform(-1, 1, SHAPE)
  eps = rng.standard_normal(SHAPE)
  alpha, sigma = scales(LOG_SNR.reshape(-1, 1, 1, 1, 1))
  z, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
  return {"x0": x0, "eps": eps, "z": z, "v": v}, alpha, sigma


def test_add_noise_and_v():
  true, _, _ = truth()
  x0, eps = jnp.float32(true["x0"]), jnp.float32(true["eps"])
  z = add_noise(x0, eps, jnp.asarray(LOG_SNR))
  v = to_v(x0, eps, jnp.asarray(LOG_SNR))
  np.testing.assert_allclose(z, true["z"], atol=1e-6)
  np.testing.assert_allclose(v, true["v"], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_follows_from_every_other(kind):
  true, alpha, sigma = truth()
  z = jnp.float32(true["z"])
  out = predict(kind, jnp.float32(true[kind]), z, jnp.asarray(LOG_SNR))
  # Solving z = alpha x0 + sigma eps for x0 divides the rounding of z by
  # alpha, for eps by sigma; v -> x0, eps is a rotation and divides by none.
  loss = {"eps": 1 / alpha, "x0": 1 / sigma, "v": np.ones_like(alpha)}[kind]
  for form in KINDS:
    error = np.abs(np.asarray(getattr(out, form)) - true[form])
    scale = 1.0 if form == kind else loss
    assert np.all(error <= 2e-6 * scale), form
    assert getattr(out, form).dtype == jnp.float32
  assert out.log_var is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back", KINDS)
def test_conversions_round_trip(kind, back):
  # Any output, not only a true one; extremes included. The error is measured
  # on what the form adds to z, which is what a sampler sees of it.
  rng = np.random.default_rng(1)
  output = jnp.float32(rng.standard_normal(SHAPE))
  z = jnp.float32(rng.standard_normal(SHAPE))
  log_snr = jnp.asarray(LOG_SNR)
  first = predict(kind, output, z, log_snr)
  second = predict(back, getattr(first, back), z, log_snr)
  _, alpha, sigma = truth()
  for form, share in {"x0": alpha, "eps": sigma}.items():
    one, two = getattr(first, form), getattr(second, form)
    size = 1 + np.max(np.abs(getattr(first, back)) * np.minimum(alpha, sigma))
    assert np.max(share * np.abs(one - two)) < 4e-6 * size
  again = alpha * second.x0 + sigma * second.eps
  np.testing.assert_allclose(again, z, atol=1e-5)


def test_half_precision_outputs_are_converted_in_float32():
  true, _, _ = truth()
  eps, z = jnp.bfloat16(true["eps"]), jnp.bfloat16(true["z"])
  log_snr = jnp.asarray(LOG_SNR)
  low = predict("eps", eps, z, log_snr)
  high = predict("eps", jnp.float32(eps), jnp.float32(z), log_snr)
  np.testing.assert_array_equal(low.x0, high.x0)


def test_log_var_is_carried_and_unknown_kinds_are_user_errors():
  z = jnp.ones((1, 1, 1, 1, 1))
  out = predict("v", z, z, jnp.zeros(1), log_var=0.5 * z)
  np.testing.assert_array_equal(out.log_var, 0.5 * z)
  with pytest.raises(UserError, match="kind='epsilon' is not one of"):
    predict("epsilon", z, z, jnp.zeros(1))


def test_a_plain_function_is_a_denoiser():
  assert isinstance(lambda z, log_snr, cond: None, Denoiser)
