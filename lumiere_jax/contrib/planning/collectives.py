"""What the devices of a compiled program send each other."""

from collections.abc import Sequence
import dataclasses
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

# What a device sends with the usual ring, over the bytes that it puts in.
_RING = {
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-gather": lambda n: n - 1,
  "reduce-scatter": lambda n: (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "ragged-all-to-all": lambda n: (n - 1) / n,
  "collective-broadcast": lambda n: (n - 1) / n,
  "collective-permute": lambda n: min(1, n - 1),
}


KINDS = tuple(_RING)


# Between slices, the runtime on the hosts does what the program asks it for.
_BETWEEN_SLICES = "xla_megascale_runtime"


_SIZE = re.compile(r"(?:'([^']+)'|(\w+))=(\d+)")


_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


_MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}")


_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")


_LISTS = r"\{(\{[\d,{}]*\})\}"


Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One instruction by which devices exchange arrays.

  Attributes:
    kind: one of `KINDS`.
    name: of the instruction.
    operands: what each device puts in, each time.
    results: what each device gets, as far as the instruction's type shows.
    count: how often it runs in a step.
    groups: which partitions do it together; of a permutation, the pairs
      (source, target).
    group_size: devices of a group, or slices where `between_slices`.
    between_slices: whether it goes over the data centre's network.
    op_name: where in the traced program it comes from.
    source: the line that asked for it.
  """

  kind: str
  name: str
  operands: tuple[Shape, ...]
  results: tuple[Shape, ...]
  count: int
  groups: Groups
  group_size: int
  between_slices: bool
  op_name: str
  source: str

  @property
  def payload(self) -> int:
    """Bytes that a device puts in, each time."""
    return sum(shape.data_bytes for shape in self.operands)

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a step, by a ring; of a permutation, one
    that sends at all."""
    return self.count * self.payload * _RING[self.kind](self.group_size)


def collectives(
  module: Module, slice_of: Sequence[int] = ()
) -> list[Collective]:
  """All of a program that run, in the order of its text.

  A pair of start and done is one. TPU programs of several slices number the
  partitions of one slice and say by themselves what goes between slices.

  Args:
    module: a program.
    slice_of: the slice of each partition, where the program numbers those of
      several.
  """
  found = []
  for name, runs in module.runs.items():
    computation = module.computations[name]
    for instruction in computation.instructions.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS and not _is_continued(computation, instruction):
        found.append(
          _read(module, computation, instruction, kind, runs, slice_of)
        )
      elif kind == "send" and _BETWEEN_SLICES in instruction.rest:
        found.append(_between_slices(module, computation, instruction, runs))
  return found


def _read(
  module: Module,
  computation: Computation,
  instruction: Instruction,
  kind: str,
  runs: int,
  slice_of: Sequence[int],
) -> Collective:
  if kind == "collective-permute":
    pairs = instruction.attribute("source_target_pairs=" + _LISTS)
    groups = tuple(g for g in _lists(pairs or "") if g[0] != g[1])
    size = 2 if groups else 1
  else:
    groups = device_groups(instruction.attributes, module.num_partitions)
    size = max(map(len, groups))
  if kind == "all-reduce" and _keeps_its_part(computation):
    kind = "reduce-scatter"
  crossing = lambda group: len({slice_of[i] for i in group}) > 1
  return _collective(
    module,
    computation,
    instruction,
    kind=kind,
    count=runs,
    groups=groups,
    group_size=size,
    between_slices=bool(slice_of) and any(map(crossing, groups)),
  )


def _between_slices(
  module: Module,
  computation: Computation,
  instruction: Instruction,
  runs: int,
) -> Collective:
  kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or ""
  kind = kind.lower().replace("_", "-")
  target = instruction.attribute(r'_xla_megascale_target="\{([\d,:]*)\}') or ""
  return _collective(
    module,
    computation,
    instruction,
    kind=kind if kind in KINDS else "collective-permute",
    count=runs,
    groups=(),
    group_size=max(2, len(target.split(","))),
    between_slices=True,
  )


def _collective(
  module: Module, computation: Computation, instruction: Instruction, **values
) -> Collective:
  operands = computation.operand_shapes(instruction)
  op_name, source = module.origin(computation, instruction)
  return Collective(
    name=instruction.name,
    operands=tuple(
      s for shapes in operands for s in shapes if s.dtype != "token"
    ),
    results=instruction.shapes,
    op_name=op_name,
    source=source,
    **values,
  )


def _is_continued(computation: Computation, instruction: Instruction) -> bool:
  """Whether it was begun elsewhere: a TPU names one that runs beside several
  kernels in each of them."""
  if "chain_id=" not in instruction.attributes:
    return False
  others = computation.instructions.values()
  return not any('"AsyncCollectiveStart"' in other.rest for other in others)


def _keeps_its_part(computation: Computation) -> bool:
  """Whether a fusion slices what it has reduced: XLA's reduce-scatter."""
  return computation.name.startswith("all-reduce-scatter")


def device_groups(attributes: str, num_partitions: int) -> Groups:
  """Which partitions work together, in any of HLO's three notations.

  `{{0,1},{2,3}}`, `[2,2]<=[4]` (also reshaped and transposed), and
  `mesh['a'=2,'b'=2] {'b'}`; all of them together where nothing is said.
  """
  _, said, text = attributes.partition("replica_groups=")
  if text.startswith("mesh["):
    return _mesh_groups(text)
  if text.startswith("["):
    return _tuples(_iota(text))
  found = re.match(_LISTS, text)
  if said and found:
    return _lists(found[1])
  return (tuple(range(num_partitions)),)


def _lists(text: str) -> Groups:
  found = re.findall(r"\{([\d,]+)\}", text)
  return tuple(tuple(map(int, group.split(","))) for group in found)


def _iota(text: str) -> np.ndarray:
  """`[4,2]<=[2,4]T(1,0)`: 0, 1, 2, ... reshaped, transposed and reshaped."""
  shape, source, order = _IOTA.match(text).groups()
  shape, source, order = map(_numbers, (shape, source, order))
  ids = np.arange(math.prod(shape)).reshape(source or shape)
  return (ids.transpose(order) if order else ids).reshape(shape)


def _mesh_groups(text: str) -> Groups:
  """Devices that differ in the named axes only, of a mesh of devices.

  An axis may be named in part: 'a':(2)4 is the 4 inside the outer 2 of it.
  """
  sizes, ids, axes = _MESH.match(text).groups()
  sizes = {a or b: int(size) for a, b, size in _SIZE.findall(sizes)}
  devices = np.arange(math.prod(sizes.values()))
  if ids:
    devices = _mesh_devices(ids)
  parts = {name: {1, size} for name, size in sizes.items()}
  wanted = []
  for name, before, size in _AXIS.findall(axes):
    first = int(before or 1)
    last = first * int(size or sizes[name])
    parts[name] |= {first, last}
    wanted.append((name, first, last))
  shape, together = [], []
  for name, cuts in parts.items():
    for begin, end in itertools.pairwise(sorted(cuts)):
      if any(n == name and a <= begin < b for n, a, b in wanted):
        together.append(len(shape))
      shape.append(end // begin)
  apart = [axis for axis in range(len(shape)) if axis not in together]
  group = math.prod(shape[axis] for axis in together)
  ordered = devices.reshape(shape).transpose(*apart, *together)
  return _tuples(ordered.reshape(-1, group))


def _mesh_devices(text: str) -> np.ndarray:
  """`[2,2,2]T(1,0,2)` transposes 0, 1, 2, ...; or the numbers themselves."""
  if not text.startswith("["):
    return np.array(_numbers(text.replace(" ", "")))
  shape, source, order = map(_numbers, _IOTA.match(text).groups())
  ids = np.arange(math.prod(shape)).reshape(source or shape)
  return (ids.transpose(order) if order else ids).reshape(-1)


def _numbers(text: str | None) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(",")) if text else ()


def _tuples(rows: np.ndarray) -> Groups:
  return tuple(tuple(row) for row in rows.tolist())
