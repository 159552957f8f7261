"""A stage's network as a Denoiser, and the config of its process."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, ssr, ssr_image
from lumiere_jax.diffusion.noise_levels import GRIDS
from lumiere_jax.diffusion.prediction import predict
from lumiere_jax.diffusion.schedules import (
  SCHEDULES,
  Cosine,
  Linear,
  SquaredCosCapV2,
)
from lumiere_jax.errors import UserError
from lumiere_jax.inference.settings import Settings
from lumiere_jax.models.config import LOW_RESOLUTION, ExecutionConfig
from lumiere_jax.models.params import inflate
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.stages import denoiser
from lumiere_jax.stages.config import (
  DiffusionConfig,
  SamplingConfig,
  StageConfig,
  VideoConfig,
)
from lumiere_jax.stages.denoiser import network_denoiser
from tests.conftest import make_cond, random_leaves, small_config


def stage_config(model, diffusion, frames=1, side=16):
  video = VideoConfig(num_frames=frames, fps=16.0, resolution=(side, side))
  return StageConfig(model=model, diffusion=diffusion, video=video)


@pytest.fixture
def run(monkeypatch):
  """Runs a stage with a network of a given output: prediction and its time."""

  def run(config, z, log_snr, output):
    times = []

    class Network:
      def __init__(self, config, execution):
        pass

      def apply(self, variables, z, time, cond, **options):
        times.append(np.asarray(time))
        return output

    monkeypatch.setattr(denoiser, "UNet", Network)
    log_snr = jnp.float32(log_snr)
    denoise = network_denoiser(config, {})
    return denoise(z, log_snr, make_cond(len(z))), times[0]

  return run


def test_six_channels_are_a_prediction_and_its_variance(rng, run):
  """As IF: eps, then v in [-1, 1]; the network is told step k as k / 1000."""
  eps, v = jnp.float32(rng.uniform(-1, 1, (2, 2, 1, 4, 4, 3)))
  t, z = jnp.array([0.3, 0.999]), jnp.float32(rng.standard_normal(eps.shape))
  log_snr = SquaredCosCapV2().log_snr(t)
  want = predict("eps", eps, z, log_snr)
  for output in (eps, jnp.concatenate([eps, v], axis=-1)):
    channels = output.shape[-1]
    config = stage_config(
      dataclasses.replace(common.IF_TINY, out_channels=channels),
      common.IF_DIFFUSION,
    )
    got, time = run(config, z, log_snr, output)
    np.testing.assert_array_equal(time, t)
    for form in ("x0", "eps", "v"):
      np.testing.assert_array_equal(getattr(got, form), getattr(want, form))
    if channels == 3:
      assert got.log_var is None
    else:  # a place between 0, the smallest variance, and 1, the largest
      np.testing.assert_allclose(got.log_var, (v + 1) / 2, atol=1e-6)


def test_schedules_have_the_shift():
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
    ({"caption_dropout": 2.0}, "caption_dropout=2.0 must be from 0 to 1"),
    ({"noise": "lognormal"}, "noise=.*logit_normal"),
    ({"noise_std": 0.0}, "noise_std=0.0 must be above 0"),
    ({"log_snr_min": 10.0}, "log_snr_min=10 is not below"),
    ({"shift": "autom"}, "shift='autom' is neither"),
    ({"shift": float("nan")}, "shift=nan is neither"),
    ({"shift": -60.0}, "shift=-60.0 is neither 'auto' nor a number from -20"),
  ],
)
def test_bad_values_are_user_errors(changes, words):
  with pytest.raises(UserError, match=f"config.diffusion.*{words}") as error:
    DiffusionConfig(**changes)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("embedding", SCHEDULES)
def test_embedded_time_does_not_depend_on_the_schedule(embedding, run):
  model = dataclasses.replace(common.TINY, noise_embedding=embedding)
  log_snr = [-12.0, -2.0, 0.0, 3.0, -np.inf]
  z = jnp.zeros((len(log_snr), 1, 2, 2, 3))
  want = SCHEDULES[embedding]().time(jnp.float32(log_snr))
  assert len(set(np.asarray(want).tolist())) >= 3  # linear ends at -10
  if embedding != "squaredcos_cap_v2":  # pure noise is embedded as time 1
    assert float(want[-1]) == pytest.approx(1.0, rel=1e-6)
  for schedule in SCHEDULES:
    for shift, noise in ((-2.77, "schedule"), (1.5, "normal"), (0, "uniform")):
      diffusion = DiffusionConfig(schedule=schedule, shift=shift, noise=noise)
      _, time = run(stage_config(model, diffusion), z, log_snr, z)
      np.testing.assert_array_equal(time, want)


def test_an_inflated_model_of_any_shift_is_its_image_model(rng):
  """Frame by frame, at each log-SNR: time is not resampled here."""
  one_level = {"channels": (16,), "num_res_blocks": (1,)}
  model = small_config(attention=("self",), temporal=None, **one_level)
  temporal = dataclasses.replace(
    common.TINY_TEMPORAL, resample=(), head_dim=8, max_distance=3
  )
  video = common.inflated(model, temporal)
  params = random_leaves(model)
  clips = random_leaves(video, seed=1) | params
  z = jnp.float32(rng.standard_normal((3, 4, 8, 8, 3)))
  log_snr, cond = jnp.float32([-9.0, -2.0, 4.0]), make_cond(3)
  picture = network_denoiser(stage_config(model, DiffusionConfig()), params)
  want = jax.jit(picture)(z, log_snr, cond)
  for shift in (0.0, -6.0):
    config = stage_config(video, DiffusionConfig(shift=shift), frames=4)
    got = jax.jit(network_denoiser(config, clips))(z, log_snr, cond)
    np.testing.assert_allclose(got.v, want.v, atol=2e-5)
  assert inflate(params, abstract_params(video), "x").keys() == clips.keys()


def format_1(schedule, shift):
  diffusion = DiffusionConfig(schedule=schedule, shift=shift)
  content = stage_config(common.TINY, diffusion).to_meta()
  for name in ("noise_embedding", "noise_embedding_shift"):
    del content["model"][name]
  return content


def test_format_1_embeds_times_of_its_schedule():
  config = StageConfig.from_meta(format_1("linear", -1.0), "x")
  assert config.model.noise_embedding == "linear"
  assert config.model.noise_embedding_shift == -1.0
  assert config.embedding_schedule == Linear(shift=-1.0)


def test_execution_keys_of_older_bundles_move_out_of_the_model():
  content = format_1("linear", -1.0)
  content.pop("execution")
  content["model"] |= {"dtype": "bfloat16", "remat": ["full", "none"]}
  config = StageConfig.from_meta(content, "x")
  assert config.execution == ExecutionConfig(
    dtype="bfloat16", remat=("full", "none")
  )
  content["model"]["remat"] = ["full"]
  with pytest.raises(UserError, match="remat has 1 entries"):
    StageConfig.from_meta(content, "x")


def test_format_1_samples_if_on_its_own_grid():
  content = format_1("squaredcos_cap_v2", 0.0)
  content["sampling"] = {"sampler": "ddpm", "steps": 10}
  config = StageConfig.from_meta(content, "x")
  want = SquaredCosCapV2().grid(10)
  np.testing.assert_array_equal(config.levels(config.defaults)[:-1], want)


def test_an_unknown_embedding_is_a_user_error():
  model = dataclasses.replace(common.TINY, noise_embedding="cosin")
  with pytest.raises(UserError, match='did you mean "cosine"'):
    stage_config(model, DiffusionConfig())


@pytest.mark.parametrize("grid", [*GRIDS, "-9,-3,0,4"])
def test_first_level_by_prediction_type(grid):
  for prediction in ("v", "x0", "eps"):
    config = stage_config(
      common.TINY, DiffusionConfig(prediction=prediction), frames=80
    )
    levels = config.levels(SamplingConfig(steps=4, grid=grid))
    assert levels.shape == (5,) and levels[-1] == np.inf
    assert np.all(np.diff(levels[1:-1]) > 0)
    if grid == "schedule":  # as it was, clip and all
      assert levels[0] == -15.0
    elif grid not in GRIDS:
      np.testing.assert_array_equal(levels[:-1], [-9, -3, 0, 4])
    elif prediction == "eps":
      taught = float(Cosine().log_snr(jnp.float32(0.999)))
      assert levels[0] == pytest.approx(taught, abs=1e-4)
    else:
      assert levels[0] == -np.inf


def test_the_first_level_follows_frames_and_pixels():
  config = stage_config(common.TINY, DiffusionConfig(), frames=80, side=128)
  levels = config.levels(SamplingConfig(steps=12))
  assert levels[1] == pytest.approx(-np.log(80 * 128 * 128) - 2, abs=1e-4)
  assert levels[-2] == 6.0
  np.testing.assert_allclose(
    np.diff(levels[1:-1]), np.diff(levels[1:3])[0], rtol=1e-3
  )
  longer = config.levels(SamplingConfig(steps=12), num_frames=160)
  assert longer[1] == pytest.approx(levels[1] - np.log(2), abs=1e-4)
  fixed = SamplingConfig(steps=12, log_snr_min=-12.0, log_snr_max=5.0)
  want = np.linspace(-12, 5, 11)
  np.testing.assert_allclose(config.levels(fixed)[1:-1], want, atol=1e-5)


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
def test_format_1_alignment(experiment, expected):
  """They do not say how; IF's schedule tells who trained the network."""
  config = experiment.sampling
  assert config.model.low_resolution == expected
  meta = json.loads(json.dumps(config.to_meta()))
  assert meta["model"].pop("low_resolution") == expected
  assert StageConfig.from_meta(meta, "old") == config
  for said in LOW_RESOLUTION:  # which goes first
    meta["model"]["low_resolution"] = said
    assert StageConfig.from_meta(meta, "new").model.low_resolution == said


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"grid": "trailin"}, 'defaults.grid=.*did you mean "trailing"'),
    ({"grid": [-8, 0]}, r"defaults.grid=\[-8, 0\] is not one of"),
    ({"shift": float("nan")}, "defaults.shift=nan must be from -40"),
    ({"log_snr_min": -300.0}, "defaults.log_snr_min=-300.0 must be"),
  ],
)
def test_bad_sampling_defaults_are_user_errors(changes, words):
  with pytest.raises(UserError, match=words):
    SamplingConfig(**changes)


def test_settings_of_the_base_and_of_super_resolution():
  defaults = SamplingConfig(steps=12)
  named = Settings(grid="karras", log_snr_min=-9, shift=-1.0, steps=7)
  base, ssr = named.of("base", defaults), named.of("ssr", defaults)
  assert (base.grid, base.log_snr_min, base.shift) == ("karras", -9, -1.0)
  assert (ssr.grid, ssr.log_snr_min, ssr.shift) == ("karras", None, 0.0)
  assert (base.steps, ssr.steps) == (7, 7)
  listed = Settings(grid="-inf,-4,0", ssr_grid="-2,2", num_frames=80)
  base, ssr = listed.of("base", defaults), listed.of("ssr", defaults)
  assert (base.grid, base.steps) == ("-inf,-4,0", 3)
  assert (ssr.grid, ssr.steps) == ("-2,2", 2)
  alone = Settings(grid="-inf,-4,0").of("ssr", defaults)
  assert (alone.grid, alone.steps) == ("log_snr", 12)
  config = stage_config(common.TINY, DiffusionConfig())
  assert config.levels(base)[0] == -np.inf


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"grid": "trailing", "log_snr_min": -9.0}, "log_snr_min changes nothing"),
    ({"grid": "-4,0,4", "shift": -1.0}, "shift changes nothing with grid=-4"),
    ({"ssr_grid": "foo"}, "ssr_grid='foo' is not one of"),
    ({"shift": float("inf")}, "shift=inf must be from -40 to 40"),
  ],
)
def test_bad_settings(changes, words):
  with pytest.raises(UserError, match=words):
    Settings(**changes)
