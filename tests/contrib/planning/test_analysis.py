"""Plans of programs that a CPU compiles, of compiler errors, and rooflines."""

import types

import jax
import jax.numpy as jnp
import pytest

from lumiere_jax.contrib.planning import analysis
from lumiere_jax.contrib.planning.analysis import parse_oom, roofline
from lumiere_jax.contrib.planning.collectives import KINDS, Collective
from lumiere_jax.contrib.planning.hlo import Shape
from lumiere_jax.contrib.planning.topology import Topology
from lumiere_jax.parallel.hardware import CHIPS, Chip

TOPOLOGY = Topology(
  name="v5e:1x1",
  num_slices=1,
  chip=CHIPS["TPU v5e"],
  devices_per_chip=1,
  devices=(None,),
)

OOM_SHORT = (
  "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
  "HLO temporaries (21.96G) exceeds available HBM (15.75G)."
)

OOM_LONG = """\
RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in \
memory space hbm. Used 63.80G of 30.75G hbm. Exceeded hbm capacity by 33.05G.

Total hbm usage >= 65.05G:
    reserved          1.25G
    program          63.80G

  Largest program allocations in hbm:

  1. Size: 2.00G
     Operator: op_name="jit(step)/jvp(h)/dot_general" source_line=1059
     Shape: f32[32,4096,4096]{1,2,0:T(8,128)}
     Unpadded size: 2.00G
     Allocation type: HLO temp
     ==========================

  2. Size: 512.00M
     Shape: bf16[65536,4096]{1,0:T(8,128)(2,1)}
     Allocation type: HLO temp
"""

MATRIX = jax.ShapeDtypeStruct((64, 64), jnp.float32)
FLOPS = 2 * 64**3


def product():
  step = lambda w, x: (w - jnp.tanh(x @ w), (x * 2).sum())
  return jax.jit(step, donate_argnums=0).lower(MATRIX, MATRIX)


def analyse(compile_, arguments=(MATRIX, MATRIX), fast=False):
  return analysis.analyse(
    types.SimpleNamespace(compile=compile_),
    topology=TOPOLOGY,
    model_flops=FLOPS,
    arguments=arguments,
    about={},
    fast=fast,
  )


def failing(message):
  def compile_():
    raise jax.errors.JaxRuntimeError(message)

  return compile_


def test_a_product():
  plan = analyse(product().compile)
  matrix = 64 * 64 * 4
  memory, measured = plan.memory, plan.measured
  assert plan.fits
  assert memory.arguments == 2 * matrix
  assert memory.outputs < matrix  # the first reuses the buffer of `w`
  assert memory.limit == 15.75 * 2**30
  parts = (memory.arguments, memory.outputs, memory.temporaries, memory.code)
  assert memory.needed == sum(parts)
  assert measured.flops == FLOPS
  assert measured.moved >= 3 * matrix
  assert measured.traffic == ()
  assert measured.roofline.compute == FLOPS / 197e12
  assert measured.roofline.memory == measured.moved / 819e9
  assert measured.roofline.model == measured.roofline.compute
  assert measured.tensors[0].bytes == matrix
  assert plan.versions["jax"] == jax.__version__


def test_fast_compilation_and_settings_are_restored():
  fastest = analysis.fast_compile_options()
  names = [*fastest, "jax_enable_compilation_cache"]
  settings = lambda: {name: getattr(jax.config, name) for name in names}
  before, lowered = settings(), product()
  for fast in (False, True):
    during = []

    def compile_(during=during):
      during.append(settings())
      return lowered.compile()

    assert analyse(compile_, fast=fast).fast == fast
    changed = {"jax_enable_compilation_cache": False}
    assert during == [before | changed | (fastest if fast else {})]
  assert settings() == before
  assert before.items().isdisjoint(fastest.items())


def test_running_out_of_memory_is_a_result():
  arguments = {"w": jax.ShapeDtypeStruct((1024, 2**20), jnp.bfloat16)}
  plan = analyse(failing(OOM_SHORT), arguments)
  assert not plan.fits
  assert plan.measured is None
  assert plan.memory.needed == int(21.96 * 2**30)
  assert plan.memory.limit == int(15.75 * 2**30)
  assert plan.memory.arguments == 2**31
  assert plan.memory.temporaries == plan.memory.needed - 2**31


def test_arrays_in_the_error_are_parsed():
  found = parse_oom(OOM_LONG)
  assert found.needed == int(63.8 * 2**30)
  assert found.limit == int(30.75 * 2**30)
  first, second = found.largest
  assert first.bytes == 2**31
  assert first.shape == "f32[32,4096,4096]{1,2,0:T(8,128)}"
  assert first.op_name == "jit(step)/jvp(h)/dot_general"
  assert (second.bytes, second.op_name) == (2**29, "")


@pytest.mark.parametrize(
  "message",
  [
    "INTERNAL: something else",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. "
    "Used 17.00M of 16.00M vmem.",
  ],
)
def test_other_errors_are_raised(message):
  assert parse_oom(message) is None
  with pytest.raises(jax.errors.JaxRuntimeError):
    analyse(failing(message))


CHIP = Chip(
  flops=100.0,
  hbm_bytes=1e9,
  hbm_bandwidth=10.0,
  ici_bandwidth=4.0,
  dcn_bandwidth=1.0,
)


def collective(kind="all-reduce", **changes) -> Collective:
  values = {
    "operands": (Shape(dtype="f32", dims=(4,)),),  # 16 bytes
    "results": (),
    "count": 1,
    "groups": (),
    "group_size": 4,
    "between_slices": False,
    "op_name": "",
    "source": "",
  }
  return Collective(kind=kind, **(values | changes))


RINGS = {
  "all-reduce": 2 * 3 / 4 * 16,
  "all-gather": 3 * 16,
  "reduce-scatter": 3 / 4 * 16,
  "all-to-all": 3 / 4 * 16,
  "ragged-all-to-all": 3 / 4 * 16,
  "collective-broadcast": 3 / 4 * 16,
  "collective-permute": 16,
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_sent_in_a_ring(kind):
  assert collective(kind).sent == RINGS[kind]
  assert collective(kind, count=5).sent == 5 * RINGS[kind]
  assert collective(kind, group_size=1).sent == 0


@pytest.mark.parametrize(
  ("flops", "moved", "moves", "model_flops", "seconds", "bound_by", "mfu"),
  [
    # 24 bytes on the links; 16 between slices.
    (
      *(300, 20),
      [collective(), collective("collective-permute", between_slices=True)],
      *(400, (3, 2, 6, 16), "network", 2 / 16),
    ),
    (300, 20, [], 600, (3, 2, 0, 0), "compute", 1),
    (0, 0, [], 600, (0, 0, 0, 0), "compute", 0),
  ],
)
def test_roofline(flops, moved, moves, model_flops, seconds, bound_by, mfu):
  found = roofline(
    CHIP,
    devices=2,
    flops=flops,
    moved=moved,
    collectives=moves,
    model_flops=model_flops,
  )
  assert (*found.terms.values(),) == seconds
  assert (found.bound, found.bound_by) == (max(seconds), bound_by)
  assert found.mfu == mfu
