"""Names of slices; their checks do not need libtpu."""

import importlib.util

import pytest

from lumiere_jax.contrib.planning.planner import PlanRequest
from lumiere_jax.contrib.planning.topology import KINDS, check_slice, describe
from lumiere_jax.errors import UserError
from lumiere_jax.parallel.hardware import chip


@pytest.mark.parametrize(
  "name",
  [
    *("v5e:1x1", "v5e:16x16", "v6e:4x8", "v4:2x2x1", "v5p:2x4x4"),
    *("v5p:4x4x4", "v5p:16x16x24", "tpu7x:4x4x8"),
  ],
)
def test_slices_that_exist(name):
  assert check_slice(name) is KINDS[name.partition(":")[0]]


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("v5e", "is not CHIP:SHAPE"),
    ("v5e:", "is not CHIP:SHAPE"),
    ("v5e:4x", "is not CHIP:SHAPE"),
    ("v5:2x2", "'v5' is not one of v4, v5e, v5p, v6e, tpu7x .did you mean"),
    ("v5e:3x5", "v5e has no such slices; use one of 1x1, 2x2, 2x4"),
    ("v5e:32x16", "v5e has no such slices"),
    ("v6e:4x4x4", "v6e has no such slices"),
    ("v5p:4x4", "v5p has no such slices; use one of 2x2x1"),
    ("v5p:3x3x3", "AxBxC of multiples of 4 with at most 6144 chips"),
    ("v5p:0x4x4", "v5p has no such slices"),
    ("v5p:24x24x24", "v5p has no such slices"),
  ],
)
def test_slices_that_do_not(name, words):
  with pytest.raises(UserError, match=words):
    check_slice(name)


def test_the_number_of_slices_is_positive():
  with pytest.raises(UserError, match="num_slices=0"):
    PlanRequest(config="", topology="v5e:2x2", num_slices=0)


def test_the_compiler_is_required(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install 'lumiere_jax\\[tpu\\]'"):
    describe("v5e:2x2")


def test_every_chip_has_peak_figures():
  assert all(chip(kind.device_kind) for kind in KINDS.values())
