"""FLOPs, memory traffic and largest arrays of a compiled program."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import math
import re

import numpy as np

from lumiere_jax.contrib.planning.hlo import (
  Computation,
  Instruction,
  Module,
  Shape,
)

_SPLASH = re.compile(r"splash_mha_(fwd|dq|dkv)_")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_SLICES = ("dynamic-slice", "slice", "gather")
# Instructions that move no data themselves.
_NO_TRAFFIC = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("while", "conditional", "call", "after-all", "opt-barrier", "send", "recv"),
  *("partition-id", "replica-id", "domain", "add-dependency"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """An array in main memory.

  Attributes:
    shape: with its layout.
    bytes: with padding.
    copies: arrays of this shape and origin; not necessarily live at once.
    op_name, source: its origin in the traced program.
  """

  shape: Shape
  bytes: int
  copies: int
  op_name: str
  source: str


def compiled_flops(module: Module) -> int:
  """FLOPs of all matrix products and convolutions per device and step.

  Two per multiply-add; loops count as often as they run, of branches the most
  expensive one. As in model FLOPs, border padding of convolutions counts.
  TPUs turn batched and outer products into convolutions of dilated inputs or
  of inputs smaller than the window: that padding does not count.
  """

  @functools.cache
  def count(name: str) -> int:
    computation = module.computations[name]
    instructions = computation.instructions.values()
    return sum(count_one(computation, i) for i in instructions)

  def count_one(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode == "dot":
      return _dot(computation, instruction)
    if instruction.opcode == "convolution":
      return _convolution(computation, instruction)
    if kind := _SPLASH.match(instruction.name):
      return _fused_attention(computation, instruction, kind[1])
    costs = map(count, module.called(instruction))
    if instruction.opcode == "conditional":
      return max(costs, default=0)
    return module.trips(instruction) * sum(costs)

  return count(module.entry)


def _fused_attention(
  computation: Computation, instruction: Instruction, kind: str
) -> int:
  """FLOPs of the kernels of `models.attention`, opaque custom calls.

  Queries and keys are (heads, width, length): the `SEQ_MINOR` layout. Forward
  has two products, the gradient of queries three, of keys and values four.
  """
  shapes = [s for (s, *_) in computation.operand_shapes(instruction)]
  query, key = [s for s in shapes if s.dtype != "s8" and len(s.dims) == 3][:2]
  products = {"fwd": 2, "dq": 3, "dkv": 4}[kind]
  return products * 2 * query.size * key.dims[-1]


def _dot(computation: Computation, instruction: Instruction) -> int:
  left = computation.operand_shapes(instruction)[0][0]
  axes = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
  depth = math.prod(left.dims[int(axis)] for axis in axes.split(",") if axis)
  return 2 * instruction.shapes[0].size * depth


def _convolution(computation: Computation, instruction: Instruction) -> int:
  (image,), (kernel,) = computation.operand_shapes(instruction)[:2]
  ((inputs, labels, output),) = _LABELS.findall(instruction.attributes)
  result = instruction.shapes[0].dims
  text = instruction.attribute(r"window=\{([^}]*)\}") or ""  # size=3x3 pad=1_1x
  window = {
    name: [int(number.partition("_")[0]) for number in numbers.split("x")]
    for name, numbers in (part.split("=") for part in text.split())
  }
  taps = 1  # (output, kernel position) pairs that count
  for axis, label in enumerate(sorted(filter(str.isdigit, labels), key=int)):
    stride, holes, spread = (
      window[name][axis] if name in window else 1
      for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    size = kernel.dims[labels.index(label)]
    outputs = result[output.index(label)]
    reach = (image.dims[inputs.index(label)] - 1) * holes + 1
    small = reach < (size - 1) * spread + 1
    if holes == 1 and not small:
      taps *= outputs * size
      continue
    low = window["pad"][axis] if "pad" in window else 0
    starts = np.arange(outputs) * stride - low
    at = np.add.outer(starts, np.arange(size) * spread)
    inside = (at >= 0) & (at < reach) if small else True
    taps *= int(np.sum((at % holes == 0) & inside))
  others = result[output.index("b")] * result[output.index("f")]
  return 2 * taps * others * kernel.dims[labels.index("i")]


def traffic(module: Module) -> int:
  """Bytes read from and written to a device's main memory per step.

  Assumes that every kernel reads each input once and writes each result once;
  of sliced or partly updated arrays, only that part. Kernels that read an input
  repeatedly, tile by tile, move more.
  """
  return sum(
    module.runs[computation.name] * _moved(module, computation, instruction)
    for computation in module.kernels
    for instruction in computation.instructions.values()
  )


def _moved(
  module: Module, computation: Computation, instruction: Instruction
) -> int:
  opcode = instruction.opcode
  if (
    opcode in _NO_TRAFFIC
    or opcode.endswith("-done")
    or _is_allocation(instruction)
  ):
    return 0
  results = instruction.shapes
  operands = computation.operand_shapes(instruction)
  if opcode == "fusion":
    inside = module.fused(instruction)
    read = (
      _read_inside(module, inside, position)
      for position, shapes in enumerate(operands)
      if _bytes(shapes)
    )
    return sum(read) + _written_inside(module, inside, results)
  if opcode in _SLICES:
    return 2 * _bytes(results)
  if opcode == "dynamic-update-slice":
    return 2 * _bytes(operands[1])
  if opcode.endswith("-start"):
    return _started(instruction, [s for shapes in operands for s in shapes])
  return sum(map(_bytes, operands)) + _bytes(results)


def _started(instruction: Instruction, operands: Sequence[Shape]) -> int:
  """Bytes of an asynchronous copy or collective; results include operands."""
  first = 0 if instruction.opcode == "copy-start" else len(operands)
  results = instruction.shapes[first : first + len(operands)]
  read = _bytes(operands)
  if instruction.opcode.removesuffix("-start") in _SLICES:
    read = min(read, sum(shape.bytes for shape in results))
  return read + _bytes(results)


def _is_allocation(instruction: Instruction) -> bool:
  """Whether it only allocates memory, without writing to it."""
  target = instruction.attribute(r'custom_call_target="(\w+)"')
  return target == "AllocateBuffer"


def _read_inside(module: Module, inside: Computation, position: int) -> int:
  """Bytes that a fusion reads of one input."""
  parameter = inside.parameters.get(position)
  if parameter is None:
    return 0
  whole = _bytes(parameter.shapes)
  return min(whole, sum(_uses(module, inside, parameter, whole)))


def _uses(
  module: Module, inside: Computation, value: Instruction, whole: int
) -> Iterator[int]:
  if value is inside.root:
    yield whole
  for user in inside.users.get(value.name, ()):
    position = user.operands.index(value.name)
    if user.opcode == "bitcast":
      yield from _uses(module, inside, user, whole)
    elif user.opcode in _SLICES and position == 0:
      # Slices inside a fusion have no layout of their own.
      share = sum(s.size for s in user.shapes) / value.shapes[0].size
      yield math.ceil(whole * share)
    elif user.opcode == "dynamic-update-slice" and position == 0:
      yield 0
    elif user.opcode == "tuple" and value.opcode in ("parameter", "bitcast"):
      yield 0  # passed through
    elif user.opcode == "fusion":
      nested = module.fused(user)
      if _source(nested, nested.root) is nested.parameters.get(position):
        yield from _uses(module, inside, user, whole)
      else:
        yield _read_inside(module, nested, position)
    else:
      yield whole


def _source(inside: Computation, value: Instruction) -> Instruction:
  """The value behind bitcasts."""
  while value.opcode == "bitcast":
    value = inside.instructions[value.operands[0]]
  return value


def _written_inside(
  module: Module, inside: Computation, results: Sequence[Shape]
) -> int:
  """Bytes that a fusion writes; of in-place updates, the updated part."""
  roots = [inside.root]
  if inside.root.opcode == "tuple":
    roots = [inside.instructions[name] for name in inside.root.operands]
  if len(roots) != len(results):
    return _bytes(results)
  pairs = zip(roots, results, strict=True)
  return sum(_written(module, inside, *pair) for pair in pairs)


def _written(
  module: Module, inside: Computation, root: Instruction, result: Shape
) -> int:
  root = _source(inside, root)
  if root.opcode == "parameter":  # passed through
    return 0
  if root.opcode == "fusion" and len(root.shapes) == 1:
    nested = module.fused(root)
    return _written(module, nested, nested.root, result)
  if root.opcode == "dynamic-update-slice":
    update = inside.instructions[root.operands[1]].shapes[0]
    return math.ceil(_bytes([result]) * update.size / result.size)
  return _bytes([result])


def _bytes(shapes: Iterable[Shape]) -> int:
  return sum(shape.bytes for shape in shapes if shape.in_hbm)


def largest_tensors(module: Module, count: int = 20) -> list[Tensor]:
  """The largest arrays among arguments and results of instructions."""
  arrays = [
    (shape, computation, instruction)
    for computation in module.kernels
    for instruction in computation.instructions.values()
    if _makes_arrays(instruction, computation.name == module.entry)
    for shape in instruction.shapes
    if shape.in_hbm
  ]
  size_of = lambda array: array[0].bytes
  arrays.sort(key=size_of, reverse=True)
  found: dict[tuple[int, str, str, str], list[Shape]] = {}
  for size, same in itertools.groupby(arrays, size_of):
    for shape, computation, instruction in same:
      origin = module.origin(computation, instruction)
      key = (size, str(shape), *origin)
      found.setdefault(key, []).append(shape)
    if len(found) >= count:
      break
  tensors = [
    Tensor(
      shape=shapes[0],
      bytes=size,
      copies=len(shapes),
      op_name=op_name,
      source=source,
    )
    for (size, _, op_name, source), shapes in found.items()
  ]
  return tensors[:count]


def _makes_arrays(instruction: Instruction, in_entry: bool) -> bool:
  if instruction.opcode == "parameter":
    return in_entry
  return not (
    instruction.opcode in _NO_TRAFFIC
    or instruction.opcode.endswith("-start")
    or _is_allocation(instruction)  # listed where it is written
  )
