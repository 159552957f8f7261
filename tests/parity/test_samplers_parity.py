"""Our samplers, conversions and thresholding against diffusers' schedulers.

The schedulers compute in float64 on their own table of alphas, so that
differences come from our float32 and log-SNR.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import guide, threshold
from lumiere_jax.diffusion.noise import frame_noise, sample_keys
from lumiere_jax.diffusion.prediction import (
  Prediction,
  add_noise,
  predict,
  to_v,
)
from lumiere_jax.diffusion.samplers import DDIM, DDPM, DPMSolverPP2M, Heun
from lumiere_jax.diffusion.sampling_loop import sample, sample_chunk
from lumiere_jax.diffusion.schedules import SquaredCosCapV2
from lumiere_jax.typing import Cond
from tests.references.samplers import time_grid

pytestmark = [
  pytest.mark.parity,
  # Raised by diffusers when it reads tensors of torch.
  pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),
]

BETAS = ["squaredcos_cap_v2", "linear"]
KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SHAPE = (2, 1, 4, 6, 3)

IF_THRESHOLD = {
  "thresholding": True,
  "dynamic_thresholding_ratio": 0.95,
  "sample_max_value": 1.5,
}


def _scheduler(name, steps=20, **options):
  diffusers = pytest.importorskip("diffusers")
  if not name.startswith("DPMSolver"):  # Has no such option.
    options["clip_sample"] = False
  scheduler = getattr(diffusers, name)(**options)
  scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
  scheduler.set_timesteps(steps)
  return scheduler


def _log_snrs(scheduler):
  """The log-SNRs of a scheduler's timesteps, then that of the clean video."""
  alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()].numpy()
  log_snr = np.log(alphas) - np.log1p(-alphas)
  return jnp.asarray(np.append(log_snr, np.inf), jnp.float32)


def _draw(steps, seed=0):
  """z, the output of the network, and noise for each step."""
  rng = np.random.default_rng(seed)
  return rng.standard_normal((3, steps, *SHAPE), np.float32)


def _torch(video):
  """(b, 1, h, w, c) as images (b, c, h, w) in float64."""
  torch = pytest.importorskip("torch")
  return torch.tensor(np.moveaxis(np.float64(video)[:, 0], -1, 1))


def _numpy(images):
  return np.moveaxis(images.numpy(), 1, -1)[:, None]


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, 0, 0, 0, 0, 0, 0))
def _ours(sampler, kind, log_snr_t, log_snr_s, z, output, noise, log_var):
  """One step at every noise level at once."""
  levels = jnp.full(z.shape[:1], log_snr_t)
  prediction = predict(kind, output, z, levels, log_var)
  return sampler.step(prediction, z, log_snr_t, log_snr_s, noise)


def _compare(ours, theirs, bound):
  """Largest difference of any step, by the largest value of that step."""
  theirs = np.stack(theirs)
  assert ours.shape == theirs.shape
  axes = tuple(range(1, theirs.ndim))
  error = (np.abs(ours - theirs).max(axes) / np.abs(theirs).max(axes)).max()
  print(f"largest relative difference of a step: {error:.1e}")
  assert error < bound


def _step_with_noise(monkeypatch, scheduler, output, t, z, noise):
  """DDPMScheduler.step with given noise."""
  monkeypatch.setattr(
    "diffusers.schedulers.scheduling_ddpm.randn_tensor",
    lambda *args, **kwargs: _torch(noise),
  )
  return _numpy(scheduler.step(output, t, _torch(z)).prev_sample)


@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("betas", BETAS)
def test_ddim_agrees_with_diffusers(betas, kind, eta, steps):
  scheduler = _scheduler(
    "DDIMScheduler", steps, beta_schedule=betas, prediction_type=KINDS[kind]
  )
  z, output, noise = _draw(steps)
  levels = _log_snrs(scheduler)
  ours = _ours(
    DDIM(eta=eta), kind, levels[:-1], levels[1:], z, output, noise, None
  )
  theirs = [
    scheduler.step(
      _torch(output[i]),
      int(t),
      _torch(z[i]),
      eta=eta,
      variance_noise=_torch(noise[i]) if eta else None,
    ).prev_sample
    for i, t in enumerate(scheduler.timesteps)
  ]
  _compare(ours, [_numpy(x) for x in theirs], 1e-5)


@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize(
  ("variance", "gamma"),
  [("fixed_small", 0.0), ("fixed_small_log", 0.0), ("fixed_large", 1.0)],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("betas", BETAS)
def test_ddpm_agrees_with_diffusers(
  monkeypatch, betas, kind, variance, gamma, steps
):
  scheduler = _scheduler(
    "DDPMScheduler",
    steps,
    beta_schedule=betas,
    prediction_type=KINDS[kind],
    variance_type=variance,
  )
  z, output, noise = _draw(steps)
  levels = _log_snrs(scheduler)
  ours = _ours(
    DDPM(gamma=gamma), kind, levels[:-1], levels[1:], z, output, noise, None
  )
  theirs = [
    _step_with_noise(
      monkeypatch, scheduler, _torch(output[i]), int(t), z[i], noise[i]
    )
    for i, t in enumerate(scheduler.timesteps)
  ]
  _compare(ours, theirs, 1e-5)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("betas", BETAS)
def test_variance_range_agrees_with_learned_range(betas, steps, learned):
  """IF's second half of channels, v: log_var = (v + 1) / 2 stands for it."""
  torch = pytest.importorskip("torch")
  scheduler = _scheduler(
    "DDPMScheduler", steps, beta_schedule=betas, variance_type="learned_range"
  )
  _, v, one = _draw(steps)
  v = v if learned else np.full_like(v, -0.4)
  sampler = DDPM(gamma=0.9 if learned else 0.3)
  levels = _log_snrs(scheduler)
  # With nothing predicted from nothing, a step is the standard deviation.
  zero, one = np.zeros_like(one), np.ones_like(one)
  log_var = (v + 1) / 2 if learned else None
  ours = _ours(sampler, "x0", levels[:-1], levels[1:], zero, zero, one, log_var)
  theirs = [
    scheduler._get_variance(int(t), torch.tensor(np.float64(v[i]))).numpy()
    for i, t in enumerate(scheduler.timesteps[:-1])
  ]
  error = np.abs(2 * np.log(ours[:-1]) - np.stack(theirs)).max()
  print(f"largest difference of log-variances: {error:.1e}")
  assert error < 1e-4
  np.testing.assert_array_equal(ours[-1], 0)


@pytest.mark.parametrize("betas", BETAS)
def test_forward_process_agrees_with_diffusers(betas):
  torch = pytest.importorskip("torch")
  scheduler = _scheduler("DDPMScheduler", 1000, beta_schedule=betas)
  shape = (1000, *SHAPE[1:])
  draws = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
  x0, eps = jnp.asarray(draws)
  levels, steps = _log_snrs(scheduler)[:-1], scheduler.timesteps
  z = scheduler.add_noise(_torch(x0), _torch(eps), steps)
  v = scheduler.get_velocity(_torch(x0), _torch(eps), steps)
  assert z.dtype == v.dtype == torch.float64
  _compare(np.asarray(add_noise(x0, eps, levels)), _numpy(z), 1e-6)
  _compare(np.asarray(to_v(x0, eps, levels)), _numpy(v), 1e-6)


def _thresholded(x0, max_value):
  stub = lambda z, log_snr, cond: Prediction(x0, x0, x0)
  text = Cond(text=jnp.zeros((x0.shape[0], 1, 1)))
  wrapped = threshold(stub, 0.95, max_value)
  return wrapped(x0, jnp.zeros(x0.shape[0]), text).x0


@pytest.mark.parametrize("max_value", [1.0, 1.5, 100.0])
def test_dynamic_thresholding_agrees_with_diffusers(max_value):
  options = IF_THRESHOLD | {"sample_max_value": max_value}
  scheduler = _scheduler("DDPMScheduler", **options)
  spread = np.array([0.3, 0.6, 0.7, 3.0], np.float32).reshape(-1, 1, 1, 1, 1)
  noise = np.random.default_rng(0).standard_normal((4, 1, 8, 9, 3), np.float32)
  ours = np.asarray(_thresholded(jnp.asarray(spread * noise), max_value))
  theirs = _numpy(scheduler._threshold_sample(_torch(spread * noise)))
  _compare(ours, theirs, 1e-6)


def _toy(xp, z, text):
  """A toy network: eps and a variance that depend on all inputs."""
  eps = 0.6 * xp.tanh(z + text) + 0.3 * z
  return eps, xp.sin(2 * z - text)


def _sample(sampler, levels, z, texts, keys, scale):
  """Our sampler on the toy, with guidance and thresholding as in IF."""

  def toy(z, log_snr, cond):
    eps, v = _toy(jnp, z, cond.text[:, :, None, None, :])
    return predict("eps", eps, z, log_snr, (v + 1) / 2)

  text, null = (Cond(text=jnp.asarray(x)) for x in texts)
  denoiser = threshold(guide(toy, scale, null), 0.95, 1.5)
  return jax.jit(
    lambda z: (
      sample_chunk(denoiser, sampler, sampler.init(z), levels, 0, keys, text).z
    )
  )(z)


def _guided(torch, z, texts, scale):
  """The same, guided as by IF's pipeline: eps, and the conditional variance."""
  text, null = (torch.tensor(np.float64(x))[:, 0, :, None, None] for x in texts)
  eps, v = _toy(torch, z, text)
  without, _ = _toy(torch, z, null)
  return without + scale * (eps - without), v


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_sampling_as_if_does_agrees_with_diffusers(monkeypatch, name):
  """All of it: guidance, thresholds, learned variance, the scan, 50 steps."""
  torch = pytest.importorskip("torch")
  options = {"beta_schedule": BETAS[0], **IF_THRESHOLD}
  if name == "ddpm":
    options["variance_type"] = "learned_range"
  scheduler = _scheduler(f"{name.upper()}Scheduler", 50, **options)
  rng = np.random.default_rng(0)
  first = rng.standard_normal(SHAPE, np.float32)
  texts = rng.standard_normal((2, SHAPE[0], 1, SHAPE[-1]), np.float32)
  keys = sample_keys([3, 4])
  sampler = DDPM() if name == "ddpm" else DDIM()
  ours = _sample(sampler, _log_snrs(scheduler), first, texts, keys, 7.0)
  z = first
  for i, t in enumerate(scheduler.timesteps):
    eps, v = _guided(torch, _torch(z), texts, 7.0)
    if name == "ddpm":
      noise = np.asarray(frame_noise(keys, i, 1, SHAPE[2:]))
      output = torch.cat([eps, v], dim=1)
      z = _step_with_noise(monkeypatch, scheduler, output, int(t), z, noise)
    else:
      step = scheduler.step(
        eps, int(t), _torch(z), use_clipped_model_output=True
      )
      z = _numpy(step.prev_sample)
  _compare(np.asarray(ours)[None], [z], 1e-5)


def test_the_discrete_schedule_is_diffusers():
  """Levels, and the steps that fewer than 1000 are spaced to."""
  for steps in (20, 100, 150, 1000):
    scheduler = _scheduler("DDPMScheduler", steps, beta_schedule=BETAS[0])
    # Its own product of them is rounded to float32.
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    ours, theirs = time_grid(SquaredCosCapV2(), steps), _log_snrs(scheduler)
    np.testing.assert_allclose(ours, theirs, atol=3e-5)
    times = SquaredCosCapV2().time(ours[:-1]) * 1000
    np.testing.assert_allclose(times, scheduler.timesteps, atol=1e-3)


def _walk(sampler, levels, kind, z, text):
  """Our z after every step of the toy network."""
  cond = Cond(text=jnp.asarray(text))

  def toy(z, log_snr, cond):
    output, _ = _toy(jnp, z, cond.text[:, :, None, None, :])
    return predict(kind, output, z, log_snr)

  chunk = jax.jit(
    lambda *args: sample_chunk(toy, sampler, *args, sample_keys([0, 1]), cond)
  )
  seen = []
  keep = lambda step, z: seen.append(np.asarray(z))
  sample(chunk, sampler.init(jnp.asarray(z)), levels, 1, keep)
  return np.stack(seen)


def _exact_sigmas(scheduler):
  """Gives a scheduler its sigmas in float64; it rounds them to float32."""
  torch = pytest.importorskip("torch")
  alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()]
  sigmas = torch.sqrt((1 - alphas) / alphas)
  scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("betas", BETAS)
def test_dpmpp_2m_agrees_with_diffusers(betas, kind):
  """Step by step: all of it, the first and the last step of first order."""
  torch = pytest.importorskip("torch")
  scheduler = _scheduler(
    "DPMSolverMultistepScheduler",
    beta_schedule=betas,
    prediction_type=KINDS[kind],
    algorithm_type="dpmsolver++",
    solver_order=2,
    solver_type="midpoint",
    final_sigmas_type="zero",
  )
  _exact_sigmas(scheduler)
  rng = np.random.default_rng(0)
  first = rng.standard_normal(SHAPE, np.float32)
  text = rng.standard_normal((SHAPE[0], 1, SHAPE[-1]), np.float32)
  ours = _walk(DPMSolverPP2M(), _log_snrs(scheduler), kind, first, text)
  z, theirs = _torch(first), []
  images = torch.tensor(np.float64(text))[:, 0, :, None, None]
  for t in scheduler.timesteps:
    z = scheduler.step(_toy(torch, z, images)[0], t, z).prev_sample
    theirs.append(_numpy(z))
  _compare(ours, theirs, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("betas", BETAS)
def test_heun_agrees_with_diffusers(betas, kind):
  """Step by step: two evaluations each, Euler at last."""
  torch = pytest.importorskip("torch")
  scheduler = _scheduler(
    "HeunDiscreteScheduler",
    beta_schedule=betas,
    prediction_type=KINDS[kind],
    timestep_spacing="leading",
  )
  # Every level but the first stands there twice, for both evaluations.
  assert len(scheduler.timesteps) == 39
  _exact_sigmas(scheduler)
  levels = _log_snrs(scheduler)[np.r_[0, 1:39:2, 39]]
  rng = np.random.default_rng(0)
  first = rng.standard_normal(SHAPE, np.float32)
  text = rng.standard_normal((SHAPE[0], 1, SHAPE[-1]), np.float32)
  ours = _walk(Heun(), levels, kind, first, text)
  # Theirs is the canvas in units of alpha.
  scale = lambda i: torch.sqrt(1 + scheduler.sigmas[i] ** 2)
  x, theirs = _torch(first) * scale(0), []
  images = torch.tensor(np.float64(text))[:, 0, :, None, None]
  for i, t in enumerate(scheduler.timesteps):
    output, _ = _toy(torch, scheduler.scale_model_input(x, t), images)
    x = scheduler.step(output, t, x).prev_sample
    if i % 2 or i == 38:  # between, it is the end of Euler's step
      theirs.append(_numpy(x / scale(i + 1)))
  _compare(ours, theirs, 1e-5)
