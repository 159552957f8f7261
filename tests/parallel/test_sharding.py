"""Shardings of every leaf of every network, and mesh sizes."""

import json
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
import optax
import pytest

from configs import base, conditional, ssr
from lumiere_jax.errors import UserError
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.parallel.mesh import AXES, BATCH, MeshConfig
from lumiere_jax.parallel.sharding import VIDEO, constrain, fit_spec, spec_of
from lumiere_jax.training.state import init_state

GOLDEN = pathlib.Path(__file__).parent / "golden" / "shardings.json"

# Other models have some of the leaves of these.
MODELS = {
  "base:tiny": base.TINY,
  "conditional": conditional.FULL,
  "ssr": ssr.FULL,
  "ssr:if": ssr.IF,
}


def mesh_of(*sizes, manual=()):
  kinds = [AxisType.Manual if a in manual else AxisType.Auto for a in AXES]
  return AbstractMesh(sizes, AXES, axis_types=tuple(kinds))


@pytest.mark.parametrize("name", MODELS)
def test_shardings_are_pinned(name):
  """Saved programs and memory plans depend on them.

  After an intended change, rewrite the file with what this test finds.
  """
  shapes = abstract_params(MODELS[name].network)
  mesh = mesh_of(1, 16, 4)
  found = {k: str(tuple(spec_of(k, v.shape, mesh))) for k, v in shapes.items()}
  assert found == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", ["conditional", "ssr"])
def test_little_is_replicated(name):
  """Under a thousandth is not sharded over 16 devices."""
  shapes = abstract_params(MODELS[name].network)
  mesh = mesh_of(1, 16, 1)
  whole = [k for k, v in shapes.items() if not any(spec_of(k, v.shape, mesh))]
  share = sum(shapes[k].size for k in whole)
  assert share < 1e-3 * sum(leaf.size for leaf in shapes.values())


@pytest.mark.parametrize(
  "optimizer",
  [optax.adam(1e-3), optax.contrib.schedule_free_adamw(1e-3)],
  ids=["adam", "schedule_free"],
)
def test_moments_and_averages_are_sharded_as_their_weights(optimizer):
  mesh = mesh_of(1, 2, 1)
  shapes = abstract_params(base.TINY.network)
  state = jax.eval_shape(lambda p: init_state(p, optimizer), shapes)
  paths = jax.tree_util.tree_leaves_with_path(state)
  seen = 0
  for keys, leaf in paths:
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    own = next((k for k in shapes if path.endswith(f"/{k}")), None)
    if own is None:
      assert spec_of(path, leaf.shape, mesh) == P()
      continue
    seen += 1
    assert spec_of(path, leaf.shape, mesh) == spec_of(own, leaf.shape, mesh)
  # Weights, average, and two moments, or one and another average.
  assert seen == 4 * len(shapes)

  # A factored moment lacks an axis of its weight: the spec does not apply.
  path, shape = "opt_state/1/v_row/down_0_0/conv_0/kernel", (3, 3, 32)
  assert spec_of(path, shape, mesh) == P()


def test_a_leaf_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="down_0/novel/weight"):
    spec_of("down_0/novel/weight", (4, 4), mesh_of(1, 2, 1))


def test_axes_that_do_not_divide_or_are_manual_are_left_out():
  mesh = mesh_of(4, 2, 2)
  # 8 samples over 4 x 2; 4 over the first axis alone; 6 over neither.
  for samples, axes in ((8, BATCH), (4, "data"), (6, None)):
    assert fit_spec(VIDEO, (samples, 5, 6, 6, 3), mesh)[0] == axes
  for rows, axis in ((6, "space"), (7, None)):
    assert fit_spec(VIDEO, (8, 5, rows, 6, 3), mesh)[2] == axis
  for devices, axis in ((64, "fsdp"), (128, None)):  # 704 = 64 x 11 channels
    wide, mesh = P(None, "fsdp"), mesh_of(1, devices, 1)
    assert fit_spec(wide, (1, 704), mesh) == P(None, axis)
  mesh = mesh_of(4, 2, 2, manual={"data"})
  assert fit_spec(VIDEO, (8, 5, 6, 6, 3), mesh)[0] == "fsdp"


def test_without_a_mesh_nothing_is_constrained():
  x = jnp.zeros((2, 1, 2, 2, 3))
  assert constrain(x, VIDEO) is x


@pytest.mark.parametrize(
  "sizes, count, resolved",
  [((-1, 2, 2), 8, (2, 2, 2)), ((1, -1, 1), 8, (1, 8, 1)), ((4, 2, 1), 8, 0)],
)
def test_minus_one_is_the_rest(sizes, count, resolved):
  config = MeshConfig(**dict(zip(AXES, sizes, strict=True)))
  assert config.resolve(count) == (resolved or sizes)


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}])
def test_sizes_must_multiply_to_the_devices(sizes):
  with pytest.raises(UserError, match=r"=3, .*does not multiply to the 8"):
    MeshConfig(**sizes).resolve(8)


@pytest.mark.parametrize(
  ("sizes", "words"), [({"fsdp": -1}, "one -1"), ({"space": 0}, "space=0")]
)
def test_invalid_sizes(sizes, words):
  with pytest.raises(UserError, match=rf"config\.mesh.*{words}"):
    MeshConfig(**sizes)
