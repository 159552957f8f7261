"""Plans of programs that a CPU compiles, and of compiler errors."""

import jax
import jax.numpy as jnp
import pytest

from lumiere_jax.contrib.planning import analysis
from lumiere_jax.contrib.planning.analysis import parse_oom
from lumiere_jax.contrib.planning.topology import Topology
from lumiere_jax.parallel.hardware import CHIPS

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

FAST = analysis.fast_compile_options()


def settings() -> dict:
  """The current values of the settings that fast compilation changes."""
  return {name: getattr(jax.config, name) for name in FAST}


class Failing:
  """A lowered program that does not compile."""

  def __init__(self, message: str):
    self.message = message

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.message)


class Recording:
  """A lowered program that records the settings it is compiled with."""

  def __init__(self, lowered):
    self.lowered = lowered

  def compile(self):
    self.settings = settings()
    self.cached = jax.config.jax_enable_compilation_cache
    return self.lowered.compile()


def product(size=64):
  x = jax.ShapeDtypeStruct((size, size), jnp.float32)
  step = lambda w, x: (w - jnp.tanh(x @ w), (x * 2).sum())
  return jax.jit(step, donate_argnums=0).lower(x, x), 2 * size**3


def analyse(lowered, **options):
  values = {"topology": TOPOLOGY, "model_flops": 2 * 64**3}
  return analysis.analyse(lowered, **(values | options))


def test_a_product():
  lowered, flops = product()
  plan = analyse(lowered)
  matrix = 64 * 64 * 4
  assert plan.fits
  assert plan.memory.arguments == 2 * matrix
  assert plan.memory.outputs < matrix  # the first reuses the buffer of `w`
  assert plan.memory.limit == 15.75 * 2**30
  memory = plan.memory
  parts = (memory.arguments, memory.outputs, memory.temporaries, memory.code)
  assert memory.needed == sum(parts)
  measured = plan.measured
  assert measured.flops == flops
  assert measured.moved >= 3 * matrix
  assert measured.traffic == ()
  assert measured.roofline.compute == flops / 197e12
  assert measured.roofline.memory == measured.moved / 819e9
  assert measured.roofline.model == measured.roofline.compute
  assert measured.tensors[0].bytes == matrix
  assert plan.versions["jax"] == jax.__version__


def test_fast_compilation_and_settings_are_restored():
  kept = jax.config.jax_enable_compilation_cache
  before = settings()
  for fast, expected in ((False, before), (True, FAST)):
    lowered = Recording(product()[0])
    assert analyse(lowered, fast=fast).fast == fast
    assert lowered.settings == expected
    assert not lowered.cached
  assert settings() == before != FAST
  assert jax.config.jax_enable_compilation_cache == kept


def test_running_out_of_memory_is_a_result():
  arguments = {"w": jax.ShapeDtypeStruct((1024, 2**20), jnp.bfloat16)}
  plan = analyse(Failing(OOM_SHORT), arguments=arguments)
  assert not plan.fits
  assert plan.measured is None
  assert plan.memory.needed == int(21.96 * 2**30)
  assert plan.memory.limit == int(15.75 * 2**30)
  assert plan.memory.arguments == 2**31
  assert plan.memory.temporaries == plan.memory.needed - 2**31
  assert analyse(Failing(OOM_SHORT)).memory.arguments is None


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
    analyse(Failing(message))
