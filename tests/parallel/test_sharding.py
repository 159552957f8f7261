"""Every leaf of every network has its place on the mesh, and keeps it."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
import optax
import pytest

from configs import base, conditional, ssr, ssr_image, t2i
from lumiere_jax.errors import UserError
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.parallel.mesh import AXES, BATCH, MeshConfig
from lumiere_jax.parallel.sharding import VIDEO, constrain, fit, spec_of
from lumiere_jax.training.state import init_state
from tests.conftest import replace

GOLDEN = pathlib.Path(__file__).parent / "golden" / "shardings.json"


MODELS = {
  "base": base.FULL,
  "base:tiny": base.TINY,
  "conditional": conditional.FULL,
  "ssr": ssr.FULL,
  "ssr:if": ssr.IF,
  "ssr_image": ssr_image.FULL,
  "t2i": t2i.FULL,
}


def mesh_of(*sizes, manual=()):
  kinds = [AxisType.Manual if a in manual else AxisType.Auto for a in AXES]
  return AbstractMesh(sizes, AXES, axis_types=tuple(kinds))


@pytest.mark.parametrize("name", MODELS)
def test_where_leaves_lie_is_pinned(name):
  """Saved programs and memory plans go by it: change it knowingly.

  After a change: rewrite the file with what this test found.
  """
  shapes = abstract_params(MODELS[name].network)
  mesh = mesh_of(1, 16, 4)
  found = {k: str(tuple(spec_of(k, v.shape, mesh))) for k, v in shapes.items()}
  assert found == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", ["base", "ssr", "t2i"])
def test_little_is_whole_on_every_device(name):
  """What is not cut up over 16 devices is under a thousandth."""
  shapes = abstract_params(MODELS[name].network)
  mesh = mesh_of(1, 16, 1)
  whole = [k for k, v in shapes.items() if not any(spec_of(k, v.shape, mesh))]
  share = sum(shapes[k].size for k in whole)
  assert share < 1e-3 * sum(leaf.size for leaf in shapes.values())


def test_moments_and_averages_lie_as_their_weights_do():
  mesh = mesh_of(1, 2, 1)
  shapes = abstract_params(base.TINY.network)
  state = jax.eval_shape(lambda p: init_state(p, optax.adam(1e-3)), shapes)
  paths = jax.tree_util.tree_leaves_with_path(state)
  name = lambda keys: "/".join(
    str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", ""))))
    for k in keys
  )
  seen = 0
  for keys, leaf in paths:
    path = name(keys)
    own = next((k for k in shapes if path.endswith(f"/{k}")), None)
    if own is None:
      assert spec_of(path, leaf.shape, mesh) == P()
      continue
    seen += 1
    assert spec_of(path, leaf.shape, mesh) == spec_of(own, leaf.shape, mesh)
  assert seen == 4 * len(shapes)  # weights, average, two moments


def test_a_factored_moment_is_whole():
  """It lacks an axis of its weight, so the rule says nothing of it."""
  mesh = mesh_of(1, 2, 1)
  path, shape = "opt_state/1/v_row/down_0_0/conv_0/kernel", (3, 3, 32)
  assert spec_of(path, shape, mesh) == P()


def test_a_leaf_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="down_0/novel/weight"):
    spec_of("down_0/novel/weight", (4, 4), mesh_of(1, 2, 1))


def test_axes_that_do_not_divide_are_left_out():
  mesh = mesh_of(4, 2, 2)
  # 8 samples over 4 x 2; 4 over the first axis alone; 6 over neither.
  assert fit(VIDEO, (8, 5, 6, 6, 3), mesh)[0] == BATCH
  assert fit(VIDEO, (4, 5, 6, 6, 3), mesh)[0] == "data"
  assert fit(VIDEO, (6, 5, 6, 6, 3), mesh)[0] is None
  assert fit(VIDEO, (8, 5, 6, 6, 3), mesh)[2] == "space"
  assert fit(VIDEO, (8, 5, 7, 6, 3), mesh)[2] is None
  # 704 = 64 x 11 channels.
  wide = P(None, "fsdp")
  assert fit(wide, (1, 704), mesh_of(1, 64, 1)) == P(None, "fsdp")
  assert fit(wide, (1, 704), mesh_of(1, 128, 1)) == P(None, None)


def test_axes_divided_by_hand_are_left_out():
  mesh = mesh_of(4, 2, 2, manual={"data"})
  assert fit(VIDEO, (8, 5, 6, 6, 3), mesh)[0] == "fsdp"


def test_without_a_mesh_nothing_is_asked():
  x = jnp.zeros((2, 1, 2, 2, 3))
  assert constrain(x, VIDEO) is x


@pytest.mark.parametrize(
  "sizes, count, filled",
  [((-1, 2, 2), 8, (2, 2, 2)), ((1, -1, 1), 8, (1, 8, 1)), ((4, 2, 1), 8, 0)],
)
def test_one_size_is_the_rest(sizes, count, filled):
  config = MeshConfig(**dict(zip(AXES, sizes, strict=True)))
  assert config.filled(count) == (filled or sizes)


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"data": 3}, "data=3, fsdp=1, space=1 does not come to the 8 devices"),
    ({"fsdp": 3}, "data=-1, fsdp=3, space=1 does not come to the 8 devices"),
  ],
)
def test_sizes_that_do_not_come_to_the_devices(sizes, message):
  with pytest.raises(UserError, match=message):
    MeshConfig(**sizes).filled(8)


def test_sizes_that_make_no_sense():
  with pytest.raises(UserError, match=r"config\.mesh.*only one"):
    MeshConfig(fsdp=-1)
  with pytest.raises(UserError, match=r"config\.mesh\.space=0"):
    MeshConfig(space=0)
  with pytest.raises(UserError, match="unknown key 'spacy'"):
    type(base.TINY).from_config({**_plain(base.TINY), "mesh": {"spacy": 1}})


def _plain(experiment):
  return dataclasses.asdict(replace(experiment, init_from="scratch"))
