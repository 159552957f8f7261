"""Inflation equals the image model where the paper says so; splitting."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models.config import TemporalConfig
from lumiere_jax.models.params import (
  flatten,
  inflate,
  is_spatial,
  is_temporal,
  split,
  unflatten,
  widen_position_bias,
)
from tests.conftest import apply, make_cond, random_leaves, run, small_config

LEVELS = {
  "channels": (16, 24),
  "num_res_blocks": (1, 1),
  "attention": ("cross", "self"),
}
IMAGE = small_config(**LEVELS, temporal=None)


def video_config(resample=True):
  temporal = TemporalConfig(resample=(resample,), head_dim=8, max_distance=32)
  return small_config(**LEVELS, temporal=temporal)


def one_level(max_distance=32):
  """The smallest video model."""
  temporal = TemporalConfig(resample=(), head_dim=8, max_distance=max_distance)
  level = {"channels": (16,), "num_res_blocks": (1,), "attention": ("self",)}
  return small_config(**level, temporal=temporal)


def inflated(config):
  """An image model of random leaves inside a video model of random leaves."""
  image = random_leaves(IMAGE, seed=1)
  return image, inflate(image, random_leaves(config, seed=2), "the image model")


def test_nothing_compared_here_is_trivially_zero(rng):
  image, flat = inflated(video_config())
  assert all(np.abs(v).max() > 0 for v in image.values())
  zeros = [k for k, v in flat.items() if not np.abs(v).max()]
  assert zeros
  assert all("/proj/" in k or "_resample/conv/bias" in k for k in zeros)


def test_without_temporal_resampling_equals_the_image_model(rng):
  config = video_config(False)
  image, flat = inflated(config)
  video = rng.standard_normal((1, 6, 8, 8, 3)).astype(np.float32)
  cond = make_cond(1)
  out = run(config, flat, video, cond)
  for t in range(6):
    frame = run(IMAGE, image, video[:, t : t + 1], cond)
    np.testing.assert_allclose(out[:, t : t + 1], frame, atol=2e-5)


def test_with_temporal_resampling_equals_it_on_constant_videos(rng):
  config = video_config()
  image, flat = inflated(config)
  picture = rng.standard_normal((1, 1, 8, 8, 3)).astype(np.float32)
  cond = make_cond(1)
  out = run(config, flat, np.repeat(picture, 4, axis=1), cond)
  expected = run(IMAGE, image, picture, cond)
  np.testing.assert_allclose(out, np.repeat(expected, 4, 1), atol=2e-5)
  # ... and not on others, as the paper says of its resampling:
  moving = rng.standard_normal((1, 4, 8, 8, 3)).astype(np.float32)
  apart = run(config, flat, moving, cond) - run(IMAGE, image, moving, cond)
  assert np.abs(apart).max() > 0.1


@pytest.mark.parametrize("frames", [2, 8])
def test_a_wider_position_bias_changes_no_video(rng, frames):
  """Frames 1, and 7 apart: short and longer clips."""
  narrow, wide = one_level(2), one_level(7)
  flat = {
    k: v + 0.2 if "/proj/" in k else v for k, v in random_leaves(narrow).items()
  }
  widened = widen_position_bias(flat, 7)
  shapes = {k: v.shape for k, v in random_leaves(wide).items()}
  assert {k: v.shape for k, v in widened.items()} == shapes
  video = rng.standard_normal((1, frames, 8, 8, 3)).astype(np.float32)
  out = run(narrow, flat, video, make_cond(1))
  np.testing.assert_array_equal(out, run(wide, widened, video, make_cond(1)))
  # Nothing is ever cut off.
  assert widen_position_bias(widened, 2) == widened
  # And offsets do matter here.
  other = {
    k: jnp.roll(v, 1, axis=0) if "position_bias" in k else v
    for k, v in flat.items()
  }
  if frames > 2:
    assert np.abs(run(narrow, other, video, make_cond(1)) - out).max() > 1e-4


@pytest.mark.parametrize(
  ("path", "kind"),
  [
    ("down_0_0/conv_0/kernel", "spatial"),
    ("temporal_down_0_0/conv/kernel", "temporal"),
    ("lora/temporal_mid/proj/kernel/a", "temporal"),
    ("cond_in/kernel", "added"),
    ("lora/cond_in/kernel/b", "added"),
    ("text_encoder/block_0/kernel", "spatial"),
  ],
)
def test_paths_of_leaves_tell_what_they_belong_to(path, kind):
  assert is_temporal(path) == (kind == "temporal")
  assert is_spatial(path) == (kind == "spatial")


def test_bypassing_temporal_layers_gives_the_image_model_back(rng):
  config = video_config()
  image, flat = inflated(config)
  flat = {  # not even trained temporal layers may show
    k: v if is_spatial(k) else v + 0.2 for k, v in flat.items()
  }
  video = rng.standard_normal((1, 3, 8, 8, 3)).astype(np.float32)
  out = run(config, flat, video, make_cond(1), bypass_temporal=True)
  np.testing.assert_allclose(
    out, run(IMAGE, image, video, make_cond(1)), atol=2e-5
  )


def test_conditioning_channels_change_nothing_at_first_and_then_do(rng):
  plain = one_level()
  config = dataclasses.replace(plain, cond_channels=4)
  flat = inflate(
    random_leaves(plain, seed=3), random_leaves(config, seed=4), "the base"
  )
  video = rng.standard_normal((1, 4, 8, 8, 3)).astype(np.float32)
  given = rng.standard_normal((1, 4, 8, 8, 4)).astype(np.float32)
  before = {k: v for k, v in flat.items() if not k.startswith("cond_in")}
  expected = run(plain, before, video, make_cond(1))
  out = run(config, flat, video, make_cond(1, given))
  np.testing.assert_allclose(out, expected, atol=1e-6)

  def loss(kernel):
    params = {**flat, "cond_in/kernel": kernel}
    z = apply(
      params, video, jnp.full(1, 0.4), make_cond(1, given), config=config
    )
    return jnp.square(z - 1.0).mean()

  grad = jax.jit(jax.grad(loss))
  kernel = flat["cond_in/kernel"]
  for _ in range(3):
    kernel = kernel - 0.1 * grad(kernel)
  trained = {**flat, "cond_in/kernel": kernel}
  a = run(config, trained, video, make_cond(1, given))
  b = run(config, trained, video, make_cond(1, -given))
  assert np.abs(a - b).max() > 1e-3


def test_flatten_and_split_are_inverses_by_path():
  flat = random_leaves(video_config())
  assert flatten(unflatten(flat)).keys() == flat.keys()
  trainable, frozen = split(flat, "temporal_")
  assert all(k.startswith("temporal_") for k in trainable)
  assert not any("temporal_" in k for k in frozen)
  assert trainable.keys() | frozen.keys() == flat.keys()
  assert frozen.keys() == random_leaves(IMAGE).keys()


@pytest.mark.parametrize(
  ("pattern", "words"),
  [("temporal_", "matches no parameter"), ("(", "not a regular expression")],
)
def test_patterns_that_cannot_be_used(pattern, words):
  with pytest.raises(UserError, match=words) as error:
    split(random_leaves(IMAGE), pattern)
  assert error.value.field == f"config.train.trainable={pattern!r}"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda _: random_leaves(dataclasses.replace(IMAGE, channels=(16, 40))),
      "is 40 instead of 24",
    ),
    (
      lambda flat: {k: v for k, v in flat.items() if k != "stem/bias"},
      "stem/bias is missing",
    ),
    (
      lambda flat: flat | {"extra/bias": np.zeros(3)},
      "extra/bias is unexpected",
    ),
  ],
)
def test_image_models_of_another_config_are_refused(change, words):
  fresh = random_leaves(video_config())
  source = change(random_leaves(IMAGE))
  with pytest.raises(UserError, match=words) as error:
    inflate(source, fresh, "config.init_from=DIR")
  assert error.value.field == "config.init_from=DIR"
