"""Roofline terms, by hand."""

import dataclasses

import pytest

from lumiere_jax.contrib.planning.collectives import KINDS, Collective
from lumiere_jax.contrib.planning.hlo import Shape
from lumiere_jax.contrib.planning.roofline import roofline
from lumiere_jax.parallel.hardware import Chip

CHIP = Chip(
  flops=100.0,
  hbm_bytes=1e9,
  hbm_bandwidth=10.0,
  ici_bandwidth=4.0,
  dcn_bandwidth=1.0,
)

SHAPE = Shape(dtype="f32", dims=(4,))  # 16 bytes


def collective(kind="all-reduce", **changes) -> Collective:
  values = {
    "name": "x",
    "operands": (SHAPE,),
    "results": (SHAPE,),
    "count": 1,
    "groups": (),
    "group_size": 4,
    "between_slices": False,
    "op_name": "",
    "source": "",
  }
  return Collective(kind=kind, **(values | changes))


@pytest.mark.parametrize(
  ("kind", "sent"),
  [
    ("all-reduce", 2 * 3 / 4 * 16),
    ("all-gather", 3 * 16),
    ("reduce-scatter", 3 / 4 * 16),
    ("all-to-all", 3 / 4 * 16),
    ("ragged-all-to-all", 3 / 4 * 16),
    ("collective-broadcast", 3 / 4 * 16),
    ("collective-permute", 16),
  ],
)
def test_rings(kind, sent):
  assert collective(kind).sent == sent
  assert collective(kind, count=5).sent == 5 * sent
  assert collective(kind, group_size=1).sent == 0
  assert kind in KINDS


def terms(**changes):
  values = {
    "devices": 2,
    "flops": 300,  # 3 s
    "moved": 20,  # 2 s
    "collectives": [
      collective(operands=(SHAPE, SHAPE)),  # 48 bytes: 12 s
      collective("collective-permute", between_slices=True),  # 16 s
    ],
    "model_flops": 400,  # 2 s of both
  }
  return roofline(CHIP, **(values | changes))


def test_terms_and_their_bound():
  found = terms()
  assert found.terms == {"compute": 3, "memory": 2, "links": 12, "network": 16}
  assert (found.bound, found.bound_by) == (16, "network")
  assert found.mfu == 2 / 16


def test_a_step_that_only_computes():
  found = terms(collectives=[], model_flops=600)
  assert (found.bound, found.bound_by) == (3, "compute")
  assert found.mfu == 1
  nothing = dataclasses.replace(found, compute=0, memory=0)
  assert nothing.mfu == 0
