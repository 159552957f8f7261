"""Training and sampling give the network the same conditioning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import conditional, ssr
from lumiere_jax.diffusion.noise import sample_keys
from lumiere_jax.models.config import LOW_RESOLUTION
from lumiere_jax.stages import conditioning
from lumiere_jax.training.task import Task
from lumiere_jax.typing import Cond
from tests.conftest import replace

HEIGHT, WIDTH, CROP, FRAMES, CLIPS = 32, 48, 16, 2, 6


@pytest.fixture
def without_noise(monkeypatch):
  """Low-resolution videos are upscaled without augmentation noise."""
  monkeypatch.setattr(conditioning, "add_noise", lambda video, *_: video)
  conditioning._noised_low_resolution.clear_cache()
  yield
  conditioning._noised_low_resolution.clear_cache()


def task_of(experiment, **model) -> Task:
  text = np.zeros((4, experiment.model.text_dim), np.float32)
  experiment = replace(experiment, model=model, data={"crop": CROP})
  return Task(experiment=experiment, null_text=text, null_mask=np.ones(4, bool))


def batch_of(rng, experiment):
  clip = (CLIPS, FRAMES, HEIGHT, WIDTH)
  batch = {
    "video": rng.integers(256, size=(*clip, 3), dtype=np.uint8),
    "text": np.zeros((CLIPS, 4, experiment.model.text_dim), np.float32),
    "text_mask": np.ones((CLIPS, 4), bool),
  }
  if experiment.model.cond_channels:
    batch["mask"] = rng.integers(2, size=(*clip, 1), dtype=np.uint8)
  return batch


def offset_of(crop, clip):
  """The (y, x) of a crop in its clip."""
  places = [
    (y, x)
    for y in range(HEIGHT - CROP + 1)
    for x in range(WIDTH - CROP + 1)
    if np.allclose(clip[:, y : y + CROP, x : x + CROP], crop, atol=1e-6)
  ]
  assert len(places) == 1
  return places[0]


@pytest.mark.parametrize("alignment", LOW_RESOLUTION)
def test_crops_are_conditioned_as_whole_frames_in_sampling(
  rng, without_noise, alignment
):
  task = task_of(ssr.TINY, low_resolution=alignment)
  batch = batch_of(rng, task.experiment)
  keys = sample_keys(range(CLIPS))
  x0, cond = jax.jit(task.inputs)(batch, keys)
  config = task.experiment.sampling
  video = dataclasses.replace(config.video, resolution=(HEIGHT, WIDTH))
  clips = conditioning.to_float(jnp.asarray(batch["video"]))
  whole = conditioning.add_low_resolution(
    dataclasses.replace(config, video=video),
    Cond(text=batch["text"]),
    conditioning.shrink(clips, config.video.upscale),
    keys,
    0.0,
  )
  assert cond.frames.shape == x0.shape == (CLIPS, FRAMES, CROP, CROP, 3)
  places = [
    offset_of(*pair) for pair in zip(x0, np.asarray(clips), strict=True)
  ]
  assert len(set(places)) > 2
  for crop, frames, (y, x) in zip(
    cond.frames, whole.frames, places, strict=True
  ):
    expected = frames[:, y : y + CROP, x : x + CROP]
    np.testing.assert_allclose(crop, expected, atol=1e-6)


def test_given_pixels_and_masks_are_of_the_same_crop(rng):
  task = task_of(conditional.SSR_TINY)
  batch = batch_of(rng, task.experiment)
  x0, cond = jax.jit(task.inputs)(batch, sample_keys(range(CLIPS)))
  assert cond.frames.shape == (CLIPS, FRAMES, CROP, CROP, 7)
  clips = np.asarray(conditioning.to_float(jnp.asarray(batch["video"])))
  for k, (y, x) in enumerate(
    offset_of(*pair) for pair in zip(x0, clips, strict=True)
  ):
    mask = batch["mask"][k, :, y : y + CROP, x : x + CROP]
    np.testing.assert_array_equal(cond.frames[k, ..., 6:], mask)
    np.testing.assert_allclose(
      cond.frames[k, ..., 3:6], x0[k] * mask, atol=1e-6
    )
