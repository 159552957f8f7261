"""Costs of compiled programs against closed forms.

Texts in `golden` are from the TPU compiler (`make_golden`); others are compiled
here, for CPUs.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from lumiere_jax.contrib.planning.collectives import collectives, device_groups
from lumiere_jax.contrib.planning.hlo import parse, shapes_in
from lumiere_jax.contrib.planning.hlo_cost import (
  compiled_flops,
  largest_tensors,
  traffic,
)
from lumiere_jax.parallel.flops import count_flops
from tests.contrib.planning.make_golden import GOLDEN, LAYERS, ROWS, WIDTH

BF16 = 2

ASYNC = """\
HloModule chain, num_partitions=4

%begin (p.0: bf16[1024,64]) -> (bf16[1024,64], bf16[4096,64]) {
  %p.0 = bf16[1024,64]{1,0} parameter(0)
  %all-gather.1 = bf16[4096,64]{1,0} all-gather(%p.0), channel_id=6, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %start = (bf16[1024,64], bf16[4096,64]) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%end (p.1: bf16[1024,64]) -> bf16[4096,64] {
  %p.1 = bf16[1024,64]{1,0} parameter(0)
  %all-gather.2 = bf16[4096,64]{1,0} all-gather(%p.1), channel_id=6, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %done = bf16[4096,64] custom-call(%p.1, %all-gather.2), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: bf16[1024,64]) -> bf16[4096,64] {
  %x = bf16[1024,64]{1,0} parameter(0), metadata={op_name="x"}
  %fusion.1 = (bf16[1024,64], bf16[4096,64]) fusion(%x), kind=kCustom, \
calls=%begin, metadata={op_name="gather"}
  %element = bf16[1024,64]{1,0} get-tuple-element(%fusion.1), index=0
  ROOT %fusion.2 = bf16[4096,64]{1,0} fusion(%element), kind=kCustom, \
calls=%end, metadata={op_name="gather"}
}
"""

SHARDED = """
import json, sys
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lumiere_jax.contrib.planning.collectives import collectives
from lumiere_jax.contrib.planning.hlo import parse

mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
put = lambda shape, *axes: jax.ShapeDtypeStruct(
  shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

def step(weights, x):
  def layer(x, w):
    w = lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
    return jnp.tanh(x @ w), None
  return lax.scan(layer, x, weights)[0].sum()

text = jax.jit(step).lower(
  put((5, 64, 64), None, "b"), put((32, 64), ("a", "b"))).compile().as_text()
print(json.dumps([
  [c.kind, c.count, c.sent, c.group_size, c.groups]
  for c in collectives(parse(text))]))
"""


def golden(name: str):
  return parse((GOLDEN / f"{name}.txt").read_text())


def compiled(function, *args) -> str:
  return jax.jit(function).lower(*args).compile().as_text()


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("{{0,1},{2,3}}, x", ((0, 1), (2, 3))),
    ("[2,2]<=[4], x", ((0, 1), (2, 3))),
    ("[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
    ("[4,2]<=[2,4]T(1,0), x", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=2,'b'=4] {'b'}, x", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("mesh['a'=2,'b'=4] {'a'}, x", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=2,'b'=2] {'a','b'}, x", ((0, 1, 2, 3),)),
    # Half of an axis: the inner 2 of 4, then the outer 2.
    ("mesh['a'=4] {'a':(2)2}, x", ((0, 1), (2, 3))),
    ("mesh['a'=4] {'a':(1)2}, x", ((0, 2), (1, 3))),
    # Devices in another order: 0 1 4 5 2 3 6 7.
    (
      "mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'b'}, x",
      ((0, 1, 4, 5), (2, 3, 6, 7)),
    ),
    ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}, x", ((3, 2), (1, 0))),
    ("{}, x", ((0, 1, 2, 3),)),
  ],
)
def test_groups_in_every_notation(text, groups):
  attributes = f", channel_id=1, replica_groups={text}, dimensions={{0}}"
  assert device_groups(attributes, num_partitions=4) == groups


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[3,5]{1,0}", 3 * 5 * 4),
    ("bf16[3,5]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),
    ("bf16[4,16,32,8]{2,3,1,0:T(8,128)(2,1)}", 4 * 16 * 8 * 128 * 2),
    ("bf16[4,1,32,256]{3,1,2,0:T(2,128)(2,1)}", 4 * 32 * 2 * 256 * 2),
    ("f32[]{:T(128)}", 128 * 4),
    ("pred[9]{0:T(512)}", 512),
    ("s4[16]{0}", 8),
    ("f8e4m3fn[16]{0}", 16),
  ],
)
def test_bytes_include_the_padding_of_tiles(text, size):
  (shape,) = shapes_in(text)
  assert shape.bytes == size


def test_on_chip_memory_is_not_main_memory():
  on_chip, in_memory = shapes_in("(f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)})")
  assert not on_chip.in_hbm
  assert in_memory.in_hbm


def test_layers_on_a_tpu():
  """Weights are gathered forward and backward, gradients are scattered."""
  module = golden("layers_v5p")
  assert compiled_flops(module) == 6 * LAYERS * WIDTH**2 * ROWS // 4
  assert not module.unknown_loops
  found = collectives(module)
  shard = WIDTH * WIDTH * BF16 // 4
  kinds = ["all-gather", "all-gather", "reduce-scatter"]
  assert sorted(c.kind for c in found) == kinds
  for collective in found:
    assert collective.count == LAYERS
    assert collective.groups == ((0, 1, 2, 3),)
    assert collective.sent == LAYERS * 3 * shard
    assert "/layer/dot_general" in collective.op_name
    assert collective.source.startswith("planning/make_golden.py:")
  assert sum("transpose(jvp())" in c.op_name for c in found) == 2


def test_a_gradient_over_two_slices():
  """Summed in a slice, exchanged between slices, gathered in a slice."""
  module = golden("gradient_two_slices")
  whole = WIDTH * WIDTH * BF16
  summary = [(c.kind, c.between_slices, c.sent) for c in collectives(module)]
  assert summary == [
    ("reduce-scatter", False, 3 / 4 * whole),
    ("all-reduce", True, whole / 4),  # 2 (2 - 1) / 2 of a quarter
    ("all-gather", False, 3 / 4 * whole),
  ]
  assert compiled_flops(module) == 2 * 2 * ROWS // 8 * WIDTH**2


def test_edge_rows_of_pixels_are_exchanged():
  """Each of a pair sends its edge row, of both its images, to the other."""
  module = golden("rows_v6e")
  found = collectives(module)
  assert [c.kind for c in found] == ["collective-permute"] * 2
  edge = 2 * 16 * 128 * BF16
  assert [c.sent for c in found] == [edge, edge]
  assert {c.groups for c in found} == {((0, 1), (2, 3)), ((1, 0), (3, 2))}
  # The compiler cuts 16 columns into windows that come to 24.
  assert compiled_flops(module) == 2 * (2 * 8 * 24 * 128) * 9 * 128


def test_a_batched_product_on_a_tpu():
  """There it is a convolution of a dilated input; zeros do not count."""
  module = golden("batched_v5e")
  assert compiled_flops(module) == 2 * 8 * 512 * 256 * 384
  sizes = [8 * 512 * 256, 8 * 256 * 384, 8 * 512 * 384]
  assert traffic(module) == BF16 * sum(sizes)
  found = largest_tensors(module, 3)
  assert [t.bytes for t in found] == sorted(
    (BF16 * s for s in sizes), reverse=True
  )
  assert [t.op_name for t in found] == ["jit(matmul)/dot_general", "a", "b"]


def test_an_outer_product_on_a_tpu():
  """There it may be a convolution of one pixel; padding does not count."""
  text = """\
HloModule m

ENTRY %main (x: bf16[8,1024,1408,1,1], w: bf16[1408,3,22,64,1]) -> bf16[8] {
  %x = bf16[8,1024,1408,1,1]{2,1,0,4,3} parameter(0)
  %w = bf16[1408,3,22,64,1]{0,3,2,1,4} parameter(1)
  ROOT %convolution.1 = bf16[8,1024,3,22,64]{4,1,3,2,0} convolution(%x, %w), \
window={size=1x3x22 pad=0_0x2_2x21_21 rhs_reversal=0x1x1}, \
dim_labels=0bf12_i12o0->0b12f, metadata={op_name="dot_general"}
}
"""
  flops = 2 * 8 * 1024 * (3 * 22 * 64) * 1408
  assert compiled_flops(parse(text)) == flops


def test_a_collective_overlapping_several_kernels_counts_once():
  (found,) = collectives(parse(ASYNC))
  assert found.sent == 3 * 1024 * 64 * BF16
  assert found.op_name == "gather"


def test_loops_in_loops_and_convolutions_on_a_cpu():
  kernel = jnp.ones((3, 3, 8, 16))

  def program(x, w, images):
    inner = lambda x, _: (jnp.tanh(x @ w), None)
    outer = lambda x, _: (lax.scan(inner, x, None, length=3)[0], None)
    x = lax.scan(outer, x, None, length=5)[0]
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
      images, kernel, (2, 2), "SAME", dimension_numbers=dims
    )
    return x.sum() + y.sum()

  args = jnp.ones((32, 32)), jnp.ones((32, 32)), jnp.ones((2, 8, 8, 8))
  flops = 15 * 2 * 32**3 + 2 * (2 * 4 * 4 * 16) * (3 * 3 * 8)
  assert compiled_flops(parse(compiled(program, *args))) == flops
  assert count_flops(program, *args) == flops


def test_trip_counts_without_the_compilers_annotation():
  """From the start, increment and limit of the counter."""
  text = """\
HloModule m

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %v = f32[8] get-tuple-element(%s), index=1
  ROOT %t = (s32[], f32[8]) tuple(%next, %v)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant(9)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (x: f32[8]) -> (s32[], f32[8]) {
  %x = f32[8] parameter(0)
  %first = s32[] FIRST
  %state = (s32[], f32[8]) tuple(%first, %x)
  ROOT %loop = (s32[], f32[8]) while(%state), condition=%condition, body=%body
}
"""
  known = parse(text.replace("FIRST", "constant(4)"))
  assert known.runs["body"] == 3  # 4, 6, 8
  unknown = parse(text.replace("FIRST", "convert(%x)"))
  assert unknown.runs["body"] == 1
  assert [loop.name for loop in unknown.unknown_loops] == ["loop"]


def test_sliced_arrays_are_read_in_part():
  """A scan over 6 rows reads each row once."""
  rows = jnp.ones((6, 1024))
  body = lambda total, row: (total + jnp.sin(row), None)
  program = lambda rows: lax.scan(body, jnp.zeros(1024), rows)[0]
  moved = traffic(parse(compiled(program, rows)))
  # Each iteration reads a row and the sum and writes the sum; some copies.
  least = 6 * 3 * 4096
  assert least <= moved < 2 * least


def test_eight_devices_on_a_cpu():
  result = subprocess.run(
    [sys.executable, "-c", SHARDED],
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  gathered = [c for c in found if c[0] == "all-gather"]
  summed = [c for c in found if c[0] == "all-reduce"]
  assert len(found) == len(gathered) + len(summed)
  # Five matrices of 64 x 64, each gathered from 4 devices.
  assert sum(c[2] for c in gathered) == 5 * 3 / 4 * 64 * 64 * 4
  for _, _, _, size, groups in gathered:
    assert size == 4
    assert sorted(groups) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  # The sum, one number, is reduced over all.
  assert [c[1:4] for c in summed] == [[1, 2 * 7 / 8 * 4, 8]]


def test_the_fused_attention_kernel_counts_its_products():
  """As the TPU compiler writes it: queries (n, d, q), keys (n, d, k)."""
  line = (
    "  %splash_mha_{kind}_segmented_residuals.6 = bf16[4,1024,64]{{2,1,0}} "
    'custom-call(%a, %q, %k, %k), custom_call_target="tpu_custom_call"'
  )
  lines = [
    "HloModule m",
    "",
    "ENTRY %main (a: s8[1,2,9], q: bf16[4,64,1024], k: bf16[4,64,4608]) -> x {",
    "  %a = s8[1,2,9]{2,1,0} parameter(0)",
    "  %q = bf16[4,64,1024]{2,1,0} parameter(1)",
    "  %k = bf16[4,64,4608]{2,1,0} parameter(2)",
    "  ROOT %x = bf16[4,1024,64]{2,1,0} copy(%q)",
    "}",
  ]
  flops = {}
  for kind in ("fwd", "dq", "dkv"):
    text = "\n".join([*lines[:-2], line.format(kind=kind), *lines[-2:]])
    flops[kind] = compiled_flops(parse(text))
  one = 2 * 4 * 1024 * 4608 * 64  # scores of four heads, 64 wide
  assert flops == {"fwd": 2 * one, "dq": 3 * one, "dkv": 4 * one}
