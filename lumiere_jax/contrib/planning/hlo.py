"""A parser of optimised HLO text: arrays, instructions, loops, sources."""

import collections
from collections.abc import Iterator
import dataclasses
import functools
import graphlib
import math
import re

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T((?:\([\d,*]+\))+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """An array with its memory layout.

  Attributes:
    dtype: in HLO's names: bf16, f32, s32, pred.
    dims: sizes, outermost first.
    layout: the text in braces, e.g. "3,2,1,0:T(8,128)(2,1)S(1)".
  """

  dtype: str
  dims: tuple[int, ...]
  layout: str = ""

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.dims))}]"

  @property
  def size(self) -> int:
    """Number of elements, without padding."""
    return math.prod(self.dims)

  @property
  def data_bytes(self) -> int:
    """Bytes without padding."""
    return -(-self.size * self._bits // 8)

  @functools.cached_property
  def bytes(self) -> int:
    """Bytes with padding to whole tiles."""
    return -(-math.prod(self._padded_dims()) * self._bits // 8)

  @property
  def in_hbm(self) -> bool:
    """Whether it is in main memory, not in on-chip or host memory."""
    return "S(" not in self.layout

  @property
  def _bits(self) -> int:
    if self.dtype in ("token", "opaque"):
      return 0
    found = re.match(r"[a-z]+(\d+)", self.dtype)
    return int(found[1]) if found else 8

  def _padded_dims(self) -> tuple[int, ...]:
    """Sizes padded to whole tiles, in memory order, outermost first."""
    found = _TILE.search(self.layout)
    if not found or "*" in found[1]:
      return self.dims
    order, _, _ = self.layout.partition(":")
    minor_first = [int(axis) for axis in order.split(",") if axis]
    dims = [self.dims[axis] for axis in reversed(minor_first)]
    for tile in re.findall(r"\(([\d,]+)\)", found[1]):
      sizes = [int(size) for size in tile.split(",")]
      dims = [1] * (len(sizes) - len(dims)) + dims
      split = len(dims) - len(sizes)
      # The next tiling subdivides this one.
      pairs = zip(dims[split:], sizes, strict=True)
      dims = dims[:split] + [-(-dim // size) for dim, size in pairs] + sizes
    return tuple(dims)


def shapes_in(text: str) -> tuple[Shape, ...]:
  """The arrays of a type; several for a tuple."""
  return tuple(
    Shape(
      dtype=dtype,
      dims=tuple(int(d.lstrip("<= ")) for d in dims.split(",") if d.strip()),
      layout=layout or "",
    )
    for dtype, dims, layout in _SHAPE.findall(text)
  )


_CALLED = re.compile(
  r"\b(calls|to_apply|condition|body|true_computation|false_computation"
  r"|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
# Instructions that call other computations, besides asynchronous ones.
_CALLERS = ("fusion", "call", "while", "conditional", "custom-call")


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """An instruction: one line of text.

  Attributes:
    name: unique in its module.
    opcode: e.g. "fusion", "all-gather-start".
    type: text of its result type.
    operands: names of its operands; the value of a constant, the position of a
      parameter.
    attributes: text after the operands.
    is_root: whether it is the result of its computation.
  """

  name: str
  opcode: str
  type: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @functools.cached_property
  def shapes(self) -> tuple[Shape, ...]:
    """The result arrays."""
    return shapes_in(self.type)

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regex searched in the attributes."""
    found = re.search(pattern, self.attributes)
    return found and found[1]

  @property
  def op_name(self) -> str:
    """Its origin in the traced program, or ""."""
    return self.attribute(r'op_name="([^"]*)"') or ""

  @functools.cached_property
  def called(self) -> dict[str, list[str]]:
    """Called computations by role (body, condition, ...)."""
    if self.opcode not in _CALLERS and not self.opcode.startswith("async-"):
      return {}
    found = _CALLED.findall(self.attributes)
    return {role: re.findall(r"[\w.\-]+", names) for role, names in found}

  @property
  def constant(self) -> int | None:
    """The value of an integer constant."""
    known = self.opcode == "constant" and self.operands
    return int(known[0]) if known and re.match(r"-?\d+$", known[0]) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
  """Instructions in order, by name."""

  name: str
  instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def root(self) -> Instruction:
    """The result."""
    return next(i for i in self.instructions.values() if i.is_root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """Its inputs, by position."""
    return {
      int(i.operands[0]): i
      for i in self.instructions.values()
      if i.opcode == "parameter"
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Name of an instruction -> the instructions that use it."""
    found = collections.defaultdict(list)
    for instruction in self.instructions.values():
      for name in instruction.operands:
        found[name].append(instruction)
    return found

  def operand_shapes(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
    """The arrays of each operand of one of its instructions."""
    known = self.instructions
    return [known[n].shapes for n in instruction.operands if n in known]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
  """A program of one device.

  Attributes:
    computations: by name.
    entry: name of the entry computation.
    num_partitions: devices that run it together; for several slices, those of
      one slice.
    tables: of file names, file locations and stack frames, by number.
  """

  computations: dict[str, Computation]
  entry: str
  num_partitions: int
  tables: dict[str, dict[int, str]]

  @functools.cached_property
  def runs(self) -> dict[str, int]:
    """Computation -> executions per step; every branch counts as taken."""
    counts = dict.fromkeys(self._callers_first, 0) | {self.entry: 1}
    for name, instruction in self._reachable():
      for called in self.called(instruction):
        counts[called] += self.trips(instruction) * counts[name]
    return counts

  @functools.cached_property
  def kernels(self) -> list[Computation]:
    """Computations outside fusions: their instructions write to memory."""
    fused: set[str] = set()
    for name, instruction in self._reachable():
      if name in fused or instruction.opcode == "fusion":
        fused.update(self.called(instruction))
    return [self.computations[n] for n in self.runs if n not in fused]

  def called(self, instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction calls."""
    names = [n for names in instruction.called.values() for n in names]
    return [n for n in names if n in self.computations]

  def fused(self, fusion: Instruction) -> Computation:
    """The computation of a fusion."""
    return self.computations[fusion.called["calls"][0]]

  def _reachable(self) -> Iterator[tuple[str, Instruction]]:
    """(name of its computation, instruction), callers before callees."""
    for name in self._callers_first:
      for instruction in self.computations[name].instructions.values():
        yield name, instruction

  @functools.cached_property
  def _callers_first(self) -> list[str]:
    """Reachable computations, callers before callees."""
    calls: dict[str, list[str]] = {}
    queue = [self.entry]
    while queue:
      name = queue.pop()
      if name not in calls:
        instructions = self.computations[name].instructions.values()
        calls[name] = [c for i in instructions for c in self.called(i)]
        queue += calls[name]
    return [*graphlib.TopologicalSorter(calls).static_order()][::-1]

  # Origins of instructions in the traced program.

  def origin(
    self, computation: Computation, instruction: Instruction, hops: int = 4
  ) -> tuple[str, str]:
    """(op_name, 'file.py:line') of an instruction, or ('', '').

    Instructions that the compiler added take them from their caller or from
    their operands.
    """
    near = [instruction, *self._callers.get(computation.name, [])[:1]]
    for _ in range(hops):
      before = [computation.instructions.get(n) for n in near[-1].operands]
      near += [i for i in before if i][:1]
    named = [i for i in near if i.op_name]
    return (named[0].op_name, self._source(named[0])) if named else ("", "")

  @functools.cached_property
  def _callers(self) -> dict[str, list[Instruction]]:
    callers = collections.defaultdict(list)
    for _, instruction in self._reachable():
      for called in self.called(instruction):
        callers[called].append(instruction)
    return callers

  def _source(self, instruction: Instruction) -> str:
    frame = instruction.attribute(r"stack_frame_id=(\d+)")
    place = self._row("StackFrames", frame).get("file_location_id")
    location = self._row("FileLocations", place)
    name = int(location.get("file_name_id", 0))
    file = self.tables["FileNames"].get(name, "").strip('"')
    short = "/".join(file.split("/")[-2:])
    return f"{short}:{location['line']}" if file else ""

  def _row(self, table: str, number: str | None) -> dict[str, str]:
    text = self.tables[table].get(int(number or 0), "")
    return dict(re.findall(r"(\w+)=(\d+)", text))

  # Loops.

  def trips(self, instruction: Instruction) -> int:
    """Runs of what an instruction calls; 1 if it is no loop or unknown."""
    count = self._trip_counts.get(instruction, 1)
    return 1 if count is None else count

  @property
  def unknown_loops(self) -> list[Instruction]:
    """Loops with an unknown trip count."""
    return [loop for loop, n in self._trip_counts.items() if n is None]

  @functools.cached_property
  def _trip_counts(self) -> dict[Instruction, int | None]:
    return {
      i: self._trip_count(computation, i)
      for computation in self.computations.values()
      for i in computation.instructions.values()
      if i.opcode == "while"
    }

  def _trip_count(self, around: Computation, loop: Instruction) -> int | None:
    """Trip count of a loop that counts from a constant to a constant."""
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
      return int(known)
    condition = self.computations[loop.called["condition"][0]]
    test, sides = self._unfused(condition, condition.root)
    if test.opcode != "compare" or sides[0].opcode != "get-tuple-element":
      return None
    index, end = int(sides[0].attribute(r"index=(\d+)") or 0), sides[1].constant
    direction = test.attribute(r"direction=(\w+)")
    start = self._start(around, loop, index)
    if end is None or start is None or direction not in ("LT", "LE"):
      return None
    step = self._step(self.computations[loop.called["body"][0]], index)
    return max(0, -(-(end - start + (direction == "LE")) // step))

  def _start(
    self, around: Computation, loop: Instruction, index: int
  ) -> int | None:
    state = around.instructions[loop.operands[0]]
    if state.opcode != "tuple":
      return None
    first = around.instructions[state.operands[index]]
    while first.opcode in ("copy", "bitcast"):
      first = around.instructions[first.operands[0]]
    return first.constant

  def _step(self, body: Computation, index: int) -> int:
    """The increment of the counter; 1 if it is not a simple addition."""
    if body.root.opcode != "tuple":
      return 1
    update = body.instructions[body.root.operands[index]]
    update, terms = self._unfused(body, update)
    constants = [i.constant for i in terms if i.constant]
    return constants[0] if update.opcode == "add" and constants else 1

  def _unfused(
    self, around: Computation, instruction: Instruction
  ) -> tuple[Instruction, list[Instruction]]:
    """An instruction, or the root of a fusion, and its operands."""
    inside, given = around, {}
    if instruction.opcode == "fusion":
      inside = self.fused(instruction)
      given = {
        parameter.name: around.instructions[instruction.operands[position]]
        for position, parameter in inside.parameters.items()
      }
      instruction = inside.root
    operands = [inside.instructions.get(n) for n in instruction.operands]
    return instruction, [given.get(i.name, i) for i in operands if i]


_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"[ )}]([a-z][\w\-]*)\(")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ROW = re.compile(r"(\d+) (.*)")


def parse(text: str) -> Module:
  """Parses the text of an optimised module."""
  computations: dict[str, Computation] = {}
  entry, current = "", Computation(name="")
  tables: dict[str, dict[int, str]] = {
    name: {} for name in ("FileNames", "FileLocations", "StackFrames")
  }
  table: dict[int, str] = {}
  lines = iter(text.splitlines())
  header = next(lines, "")
  for line in lines:
    if line[:1].isspace():
      found = _INSTRUCTION.match(line)
      if found and (opcode := _OPCODE.search(found[3])):
        rest = found[3][opcode.end() :]
        if opcode[1] != "while":  # most of the text, and not needed
          rest = rest.partition(", backend_config=")[0]
        operands, attributes = _split(rest)
        current.instructions[found[2]] = Instruction(
          name=found[2],
          opcode=opcode[1],
          type=found[3][: opcode.start(1)],
          operands=operands,
          attributes=attributes,
          is_root=bool(found[1]),
        )
    elif line.isidentifier():
      table = tables.get(line, {})
    elif found := _ROW.match(line):
      table[int(found[1])] = found[2]
    elif found := _HEAD.match(line):
      current = computations[found[2]] = Computation(name=found[2])
      entry = found[2] if found[1] else entry
  partitions = re.search(r"num_partitions=(\d+)", header)
  return Module(
    computations=computations,
    entry=entry,
    num_partitions=int(partitions[1]) if partitions else 1,
    tables=tables,
  )


def _split(rest: str) -> tuple[tuple[str, ...], str]:
  """Splits what follows an opcode's bracket into operands and attributes."""
  depth, start, operands = 0, 0, []
  for found in re.finditer(r"[(){}\[\],]", rest):
    depth += (found[0] in "({[") - (found[0] in ")}]")
    if depth < 0 or (found[0] == "," and not depth):
      words = re.sub(r"/\*.*?\*/", "", rest[start : found.start()]).split()
      operands += [word.lstrip("%") for word in words[-1:]]
      start = found.end()
    if depth < 0:
      break
  return tuple(operands), rest[start:]
