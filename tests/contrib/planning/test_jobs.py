"""Planned programs equal those that run."""

import jax
import numpy as np
import pytest

from lumiere_jax.contrib.planning.jobs import make_job, sample_job, train_job
from lumiere_jax.errors import UserError
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet, abstract_params
from lumiere_jax.parallel.flops import count_flops
from lumiere_jax.parallel.mesh import MeshConfig, make_mesh
from lumiere_jax.training.train_step import model_flops
from tests.conftest import replace
from tests.training.conftest import BASE, make_batch, make_task

STAGE = replace(BASE, init_from="elsewhere", text={"max_length": 4})

SSR = replace(
  STAGE,
  upscale=2,
  model={"in_channels": 6, "noise_conditioned": True},
  data={"num_frames": 4},
)


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig(), jax.devices()[:1])


def test_a_training_step_has_the_shapes_of_training(mesh):
  # Micro-batches and remat do not change model FLOPs.
  costly = replace(
    STAGE, train={"accumulate": 2}, execution={"remat": ("full",)}
  )
  job = train_job(costly, mesh)
  state, frozen, batch, _ = job.arguments
  real = make_batch(STAGE, STAGE.train.batch_size)
  assert batch["video"].shape == real["video"].shape
  assert {k: v.dtype for k, v in batch.items()} == {
    k: v.dtype for k, v in real.items()
  }
  assert all("temporal_" in path for path in state.trainable)
  assert frozen and not any("temporal_" in path for path in frozen)
  assert job.videos == STAGE.train.batch_size
  wanted = model_flops(STAGE, make_task(STAGE), state, frozen, batch)
  assert job.model_flops == wanted > 0


def test_a_step_of_sampling_costs_one_network_for_each_window(mesh):
  whole = sample_job(SSR, mesh, num_frames=4)
  windows = make_job("sample", SSR, mesh, 8)
  assert windows.about["windows"] == 3  # from 0, 2 and 4
  assert windows.about["clip"][0] == 8
  ratio = windows.model_flops / whole.model_flops
  np.testing.assert_allclose(ratio, 3, rtol=1e-3)


def test_guidance_doubles_the_cost(mesh):
  job = sample_job(STAGE, mesh, num_frames=4)
  _, state, *_, cond, _, _ = job.arguments
  z = state.z
  network = lambda p, z, cond: UNet(STAGE.model).apply(
    {"params": unflatten(p)}, z, jax.numpy.zeros(1), cond
  )
  alone = count_flops(network, abstract_params(STAGE.model), z, cond)
  np.testing.assert_allclose(job.model_flops, 2 * alone, rtol=0.02)


def test_too_few_frames_are_an_error(mesh):
  with pytest.raises(UserError, match="num_frames=2 is less than the 4"):
    make_job("sample", SSR, mesh, 2)
