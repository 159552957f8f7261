"""Reports of plans, and advice."""

import dataclasses
import json

import pytest

from lumiere_jax.contrib.planning.analysis import (
  Allocation,
  Memory,
  OutOfMemory,
  Plan,
  ProgramCosts,
  Roofline,
  Traffic,
)
from lumiere_jax.contrib.planning.hlo import Shape
from lumiere_jax.contrib.planning.hlo_cost import Tensor
from lumiere_jax.contrib.planning.report import advice, save, text
from lumiere_jax.errors import format_message

GIB = 2**30

MEASURED = ProgramCosts(
  flops=3 * 10**12,
  moved=10**10,
  traffic=(
    Traffic(
      kind="all-gather",
      between_slices=False,
      count=12,
      sent=2.5 * GIB,
      largest="jit(step)/" + 70 * "x" + "/down_0/conv",
    ),
    Traffic(
      kind="all-reduce", between_slices=True, count=1, sent=2**20, largest="sum"
    ),
  ),
  tensors=(
    Tensor(
      shape=Shape(dtype="bf16", dims=(80, 128, 128, 704)),
      bytes=4 * 80 * 128 * 128 * 704 * 2,
      copies=3,
      op_name="jit(step)/up_3/conv",
      source="models/unet.py:12",
    ),
  ),
  roofline=Roofline(
    compute=0.5, memory=0.25, links=1.5, network=0.0, model=0.3
  ),
  unknown_loops=2,
)

SETTINGS = {
  "model": {"channels": (1, 2, 3, 4)},
  "execution": {"remat": ()},
  "train": {
    "batch_size": 128,
    "accumulate": 1,
    "trainable": "temporal_",
    "frozen_dtype": "source",
  },
  "mesh": {"data": -1, "fsdp": 1, "space": 1},
}

PLAN = Plan(
  topology="2 slices of v5p:4x4x4 (128 chips)",
  devices=128,
  num_slices=2,
  fits=True,
  memory=Memory(
    arguments=10 * GIB,
    outputs=0,
    temporaries=30 * GIB,
    code=2**20,
    needed=40 * GIB + 2**20,
    limit=80 * GIB,
  ),
  model_flops=128 * 2 * 10**12,
  measured=MEASURED,
  exhausted=None,
  compile_seconds=61.7,
  fast=True,
  versions={"jax": "1.2.3", "libtpu": "4.5"},
  about={
    "job": "train",
    "config": "configs/base.py",
    "overrides": ["--config.mesh.fsdp=4"],
    "mesh": {"data": 128, "fsdp": 1, "space": 1},
    "settings": SETTINGS,
  },
)

FAILED = dataclasses.replace(
  PLAN,
  fits=False,
  measured=None,
  exhausted=OutOfMemory(
    needed=120 * GIB,
    limit=80 * GIB,
    largest=(Allocation(bytes=GIB, shape="f32[2]", op_name="loss"),),
  ),
  memory=Memory(
    arguments=10 * GIB,
    outputs=None,
    temporaries=110 * GIB,
    code=None,
    needed=120 * GIB,
    limit=80 * GIB,
  ),
)


def changed(job="train", arguments=10 * GIB, **settings) -> Plan:
  merged = {part: SETTINGS[part] | settings.get(part, {}) for part in SETTINGS}
  return dataclasses.replace(
    FAILED,
    about={"job": job, "settings": merged, "mesh": merged["mesh"]},
    memory=dataclasses.replace(FAILED.memory, arguments=arguments),
  )


def names(plan: Plan) -> list[str]:
  """The advised overrides, without explanations."""
  return [format_message(step.partition(" (")[0]) for step in advice(plan)]


def test_a_plan_that_fits():
  report = text(PLAN)
  for line in (
    "train of configs/base.py, on 2 slices of v5p:4x4x4 (128 chips)",
    "--config.mesh.fsdp=4",
    "compiled in 62 s, fast mode (jax 1.2.3, libtpu 4.5), not run",
    "fits: 50% of the available 80.00 GiB",
    "10.00 GiB  arguments: state and batch",
    "2.00 TFLOP  of the model",
    "3.00 TFLOP  as compiled: 1.50 times that",
    "A step takes at least 1.50 s, bound by links within a slice: at most 20%",
    "500.000 ms  matrix products and convolutions",
    "2.50 GiB  12 x all-gather",
    "1.00 MiB  1 x all-reduce between slices",
    "6.88 GiB  bf16[80,128,128,704] x 3  padded 4.0 times  jit(step)/up_3",
    "models/unet.py:12",
    "2 loops have an unknown trip count",
  ):
    assert line in report
  assert "network between slices" not in report  # unused
  assert "To reduce memory" not in report
  assert max(map(len, report.splitlines())) < 120


def test_a_plan_that_does_not():
  report = text(FAILED)
  assert "DOES NOT FIT: needs 120.00 GiB, 1.5 times the available 80" in report
  assert "1.00 GiB  f32[2]  loss" in report
  assert "A step takes" not in report
  assert f"  1. {REMAT}" in report


@pytest.mark.parametrize("plan", [PLAN, FAILED])
def test_as_json(tmp_path, plan):
  save(plan, tmp_path / "plan.json")
  read = json.loads((tmp_path / "plan.json").read_text())
  assert read["fits"] == plan.fits
  assert read["memory"]["needed"] == plan.memory.needed
  assert read["about"]["config"] == "configs/base.py"
  if plan.fits:
    roofline = read["measured"]["roofline"]
    assert (roofline["bound"], roofline["bound_by"]) == (1.5, "links")
    assert roofline["mfu"] == pytest.approx(0.2)
    dims = read["measured"]["tensors"][0]["shape"]["dims"]
    assert dims == [80, 128, 128, 704]
    assert read["advice"] == []
  else:
    assert read["measured"] is None
    assert read["advice"] == [*map(format_message, advice(plan))]


REMAT = "config.execution.remat=\"('full', 'full', 'full', 'full')\""
SPACE, FSDP = "config.mesh.space=2", "config.mesh.fsdp=4"
LARGER = "a larger topology"


def test_advice_begins_with_the_largest_part():
  frozen = "config.train.frozen_dtype=bfloat16"
  assert names(changed()) == [REMAT, SPACE, frozen, FSDP, LARGER]
  weights = changed(arguments=70 * GIB)
  assert names(weights) == [frozen, FSDP, REMAT, SPACE, LARGER]


def test_advice_depends_on_the_settings():
  full = {"remat": ("full",) * 4}
  done = {"frozen_dtype": "bfloat16", "batch_size": 512}
  plan = changed(execution=full, train=done, mesh={"fsdp": 8, "space": 2})
  # 512 x 2 / 128 samples on a device at a time.
  assert names(plan) == [
    "config.train.accumulate=2",
    "config.mesh.fsdp=32",
    LARGER,
  ]
  # fsdp and space together fill a slice of 64 devices.
  plan = changed(execution=full, train=done, mesh={"fsdp": 32, "space": 2})
  assert names(plan)[1:] == [LARGER]
  plan = changed(mesh={"data": 128})
  assert f"{FSDP} config.mesh.data=-1" in names(plan)


def test_advice_for_sampling():
  assert names(changed(job="sample")) == [SPACE, FSDP, LARGER]


def test_loops_of_unknown_length_are_reported():
  measured = dataclasses.replace(MEASURED, unknown_loops=2)
  plan = dataclasses.replace(PLAN, measured=measured)
  assert "2 loops have an unknown trip count" in text(plan)
