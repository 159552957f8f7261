"""A parser of optimised HLO text: arrays, instructions, loops, sources."""

import collections
from collections.abc import Iterator, Mapping
import dataclasses
import functools
import graphlib
import math
import re

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T((?:\([\d,*]+\))+)")
_BITS = re.compile(r"^[a-z]+(\d+)")


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

  @property
  def bytes(self) -> int:
    """Bytes with padding to whole tiles."""
    return -(-math.prod(self._padded_dims()) * self._bits // 8)

  @property
  def in_hbm(self) -> bool:
    """Whether it is in main memory, not in on-chip or host memory."""
    return "S(" not in self.layout

  @property
  def _bits(self) -> int:
    if self.dtype in ("pred", "token", "opaque"):
      return 8 * (self.dtype == "pred")
    found = _BITS.match(self.dtype)
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
      outer = dims[: len(dims) - len(sizes)]
      inner = dims[len(dims) - len(sizes) :]
      # The next tiling subdivides this one.
      pairs = zip(inner, sizes, strict=True)
      dims = [*outer, *(-(-dim // size) for dim, size in pairs), *sizes]
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


_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"(?:^|[ )}])([a-z][\w\-]*)\(")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")

_CALLED = re.compile(
  r"\b(calls|to_apply|condition|body|true_computation|false_computation"
  r"|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)

_COMMENT = re.compile(r"/\*.*?\*/")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ROW = re.compile(r"(\d+) (.*)")
_FIELD = re.compile(r"(\w+)=(\d+)")
_TABLES = ("FileNames", "FileLocations", "StackFrames")
_HOPS = 4

FOLLOWED = ("fusion", "call", "while", "conditional", "custom-call")
"""Instructions that call other computations, besides asynchronous ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """An instruction: one line of text.

  Attributes:
    name: unique in its module.
    opcode: e.g. "fusion", "all-gather-start".
    type: text of its result type.
    rest: text after the opcode's opening bracket.
    is_root: whether it is the result of its computation.
  """

  name: str
  opcode: str
  type: str
  rest: str
  is_root: bool

  @functools.cached_property
  def shapes(self) -> tuple[Shape, ...]:
    """The result arrays."""
    return shapes_in(self.type)

  @functools.cached_property
  def operands(self) -> tuple[str, ...]:
    """Names of its operands."""
    text = _COMMENT.sub("", self.rest[: self._end])
    return tuple(p.split()[-1].lstrip("%") for p in _split(text))

  @functools.cached_property
  def attributes(self) -> str:
    """Text after the operands."""
    return self.rest[self._end + 1 :]

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regex searched in the attributes."""
    found = re.search(pattern, self.attributes)
    return found and found[1]

  @property
  def op_name(self) -> str:
    """Its origin in the traced program, or ""."""
    return self.attribute(r'op_name="([^"]*)"') or ""

  @functools.cached_property
  def called(self) -> Mapping[str, list[str]]:
    """Called computations by role (body, condition, ...)."""
    if self.opcode not in FOLLOWED and not self.opcode.startswith("async-"):
      return {}
    found = collections.defaultdict(list)
    for part, names in _CALLED.findall(self.attributes):
      found[part] += [n.strip(" %") for n in names.strip("{}").split(",")]
    return found

  @functools.cached_property
  def _end(self) -> int:
    """Index of the bracket that closes the operands."""
    depth = 0
    for found in re.finditer(r"[()]", self.rest):
      depth += 1 if found[0] == "(" else -1
      if depth < 0:
        return found.start()
    return len(self.rest)


def _split(text: str) -> Iterator[str]:
  """Splits at commas outside brackets."""
  depth, start = 0, 0
  for found in re.finditer(r"[(){}\[\],]", text):
    if found[0] == ",":
      if not depth:
        yield text[start : found.start()]
        start = found.end()
    else:
      depth += 1 if found[0] in "({[" else -1
  if text[start:].strip():
    yield text[start:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
  """Instructions in order, by name."""

  name: str
  instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def root(self) -> Instruction:
    """The result."""
    found = [i for i in self.instructions.values() if i.is_root]
    return found[0] if found else [*self.instructions.values()][-1]

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
      trips = self.trip_counts.get(instruction, 1)
      for called in self._called(instruction):
        counts[called] += trips * counts[name]
    return counts

  @functools.cached_property
  def kernels(self) -> list[Computation]:
    """Computations outside fusions: their instructions write to memory."""
    fused = set()
    for name, instruction in self._reachable():
      if name in fused or instruction.opcode == "fusion":
        fused.update(self._called(instruction))
    return [self.computations[n] for n in self.runs if n not in fused]

  @functools.cached_property
  def unknown_loops(self) -> list[Instruction]:
    """Loops with an unknown trip count; counted once."""
    return [loop for loop, n in self._known_trip_counts.items() if n is None]

  def origin(
    self, computation: Computation, instruction: Instruction
  ) -> tuple[str, str]:
    """(op_name, 'file.py:line') of an instruction, or ('', '').

    Instructions that the compiler added take them from their caller or from
    their operands.
    """
    near = [instruction, *self._callers.get(computation.name, [])[:1]]
    for _ in range(_HOPS):
      before = [computation.instructions.get(n) for n in near[-1].operands]
      near += [i for i in before if i][:1]
    for candidate in near:
      if candidate.op_name:
        return candidate.op_name, self._source(candidate)
    return "", ""

  @functools.cached_property
  def _callers(self) -> dict[str, list[Instruction]]:
    callers = collections.defaultdict(list)
    for _, instruction in self._reachable():
      for called in self._called(instruction):
        callers[called].append(instruction)
    return callers

  def _source(self, instruction: Instruction) -> str:
    line = instruction.attribute(r"source_line=(\d+)")
    if line:
      file = instruction.attribute(r'source_file="([^"]*)"')
      return f"{_base(file or '?')}:{line}"
    frame = instruction.attribute(r"stack_frame_id=(\d+)")
    place = self._row("StackFrames", frame).get("file_location_id")
    location = self._row("FileLocations", place)
    file = self.tables["FileNames"].get(int(location.get("file_name_id", 0)))
    return f"{_base(file.strip(chr(34)))}:{location['line']}" if file else ""

  def _row(self, table: str, number: str | None) -> dict[str, str]:
    return dict(_FIELD.findall(self.tables[table].get(int(number or 0), "")))

  def _reachable(self) -> Iterator[tuple[str, Instruction]]:
    """(name of its computation, instruction), callers before callees."""
    for name in self._callers_first:
      for instruction in self.computations[name].instructions.values():
        yield name, instruction

  def _called(self, instruction: Instruction) -> list[str]:
    names = [n for names in instruction.called.values() for n in names]
    return [n for n in names if n in self.computations]

  @functools.cached_property
  def _callers_first(self) -> list[str]:
    """Reachable computations, callers before callees."""
    calls, queue = {}, [self.entry]
    while queue:
      name = queue.pop()
      if name not in calls:
        instructions = self.computations[name].instructions.values()
        calls[name] = {c for i in instructions for c in self._called(i)}
        queue += calls[name]
    return [*graphlib.TopologicalSorter(calls).static_order()][::-1]

  @functools.cached_property
  def trip_counts(self) -> dict[Instruction, int]:
    """Loop -> its trip count; 1 if it is unknown."""
    known = self._known_trip_counts.items()
    return {loop: 1 if count is None else count for loop, count in known}

  @functools.cached_property
  def _known_trip_counts(self) -> dict[Instruction, int | None]:
    return {
      i: self._trip_count(computation, i)
      for computation in self.computations.values()
      for i in computation.instructions.values()
      if i.opcode == "while"
    }

  def _trip_count(self, around: Computation, loop: Instruction) -> int | None:
    """Trip count of a loop that counts from a constant to a constant."""
    known = _TRIP_COUNT.search(loop.rest)
    if known:
      return int(known[1])
    condition = self.computations[loop.called["condition"][0]]
    end, index, direction = self._comparison(condition)
    if end is None or index is None or direction not in ("LT", "LE"):
      return None
    start = self._start(around, loop, index)
    if start is None:
      return None
    step = self._step(self.computations[loop.called["body"][0]], index)
    return max(0, -(-(end - start + (direction == "LE")) // step))

  def _comparison(self, condition: Computation):
    """(limit, index of the counter, direction) of a loop condition."""
    root, inside = condition.root, condition
    arguments = {}
    if root.opcode == "fusion":
      inside = self.computations[root.called["calls"][0]]
      arguments = {
        parameter.name: condition.instructions[root.operands[position]]
        for position, parameter in inside.parameters.items()
      }
      root = inside.root
    if root.opcode != "compare":
      return None, None, None
    sides = [inside.instructions[n] for n in root.operands]
    sides = [arguments.get(side.name, side) for side in sides]
    end, index = _constant(sides[1]), _element(sides[0])
    return end, index, root.attribute(r"direction=(\w+)")

  def _start(self, around, loop, index) -> int | None:
    state = around.instructions[loop.operands[0]]
    if state.opcode != "tuple":
      return None
    first = around.instructions[state.operands[index]]
    while first.opcode in ("copy", "bitcast"):
      first = around.instructions[first.operands[0]]
    return _constant(first)

  def _step(self, body: Computation, index: int) -> int:
    """The increment of the counter; 1 if it is not a simple addition."""
    if body.root.opcode != "tuple":
      return 1
    update = body.instructions[body.root.operands[index]]
    inside = body
    if update.opcode == "fusion":
      inside = self.computations[update.called["calls"][0]]
      update = inside.root
    if update.opcode != "add":
      return 1
    values = [_constant(inside.instructions[n]) for n in update.operands]
    return next((value for value in values if value), 1)


def parse(text: str) -> Module:
  """Parses the text of an optimised module."""
  computations, entry, current = {}, "", None
  tables = {name: {} for name in _TABLES}
  table = {}
  lines = iter(text.splitlines())
  header = next(lines, "")
  for line in lines:
    if line[:1].isspace():
      found = current and _INSTRUCTION.match(line)
      if found and (opcode := _opcode(found[3])):
        begin, end = opcode.span(1)
        rest = found[3][end + 1 :]
        if opcode[1] != "while":  # most of the text, and not needed
          rest = rest.partition(", backend_config=")[0]
        current.instructions[found[2]] = Instruction(
          name=found[2],
          opcode=opcode[1],
          type=found[3][:begin],
          rest=rest,
          is_root=bool(found[1]),
        )
    elif line.isidentifier():
      table = tables.get(line, {})
    elif found := _ROW.match(line):
      table[int(found[1])] = found[2]
    elif found := _HEAD.match(line):
      current = Computation(name=found[2])
      computations[found[2]] = current
      entry = found[2] if found[1] else entry
  partitions = re.search(r"num_partitions=(\d+)", header)
  return Module(
    computations=computations,
    entry=entry,
    num_partitions=int(partitions[1]) if partitions else 1,
    tables=tables,
  )


def _opcode(text: str) -> re.Match | None:
  """The first name after the type that is followed by a bracket."""
  return next((m for m in _OPCODE.finditer(text) if m.start()), None)


def _constant(instruction: Instruction) -> int | None:
  found = re.match(r"(-?\d+)\)", instruction.rest)
  return int(found[1]) if instruction.opcode == "constant" and found else None


def _element(instruction: Instruction) -> int | None:
  if instruction.opcode != "get-tuple-element":
    return None
  return int(instruction.attribute(r"index=(\d+)"))


def _base(file: str) -> str:
  """The last two parts of a path."""
  return "/".join(file.split("/")[-2:])
