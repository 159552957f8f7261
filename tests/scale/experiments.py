"""Real configs, shrunk to compile in seconds for eight CPU devices."""

import dataclasses
import math

import jax

from configs import base, common, ssr
from lumiere_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from lumiere_jax.training.config import Experiment
from tests.conftest import replace
from tests.training import conftest

_SMALL = {
  "channels": (8, 16),
  "text_channels": 8,
  "head_dim": 8,
  "norm_groups": 4,
  "temporal": dataclasses.replace(common.TINY_TEMPORAL, head_dim=8),
}
BASE = replace(
  base.TINY,
  init_from="scratch",
  model=_SMALL,
  data={"num_frames": 4, "num_clips": 16},
  train={"batch_size": 8, "steps": 10},
)
SSR = replace(
  ssr.TINY, init_from="scratch", model=_SMALL, train={"batch_size": 8}
)
# One level, for tests that need many processes rather than all layers.
MICRO = replace(
  conftest.BASE, init_from="scratch", train={"batch_size": 8, "save_every": 2}
)


def get_config(size: str):
  return common.choose(size, {"base": BASE, "ssr": SSR, "micro": MICRO})


def mesh_of(*shape: int) -> jax.sharding.Mesh:
  """A mesh of the first devices; its shape is (data, fsdp, space)."""
  config = MeshConfig(**dict(zip(AXES, shape, strict=True)))
  return make_mesh(config, jax.devices()[: math.prod(shape)])


def with_optimizer(experiment: Experiment, name: str) -> Experiment:
  """With a learning rate at which ten steps change weights visibly."""
  rate = 0.1 if name == "sgd" else 1e-3
  return replace(experiment, train={"optimizer": name, "learning_rate": rate})
