"""Collectives of a compiled program: kinds, groups, bytes."""

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

# Bytes sent per device in the usual ring algorithm, relative to its input.
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

# Transfers between slices are done by the runtime on the hosts.
_BETWEEN_SLICES = "xla_megascale_runtime"
_SIZE = re.compile(r"(?:'([^']+)'|(\w+))=(\d+)")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_LISTS = r"\{(\{[\d,{}]*\})\}"
Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One collective instruction.

  Attributes:
    kind: one of `KINDS`.
    name: of the instruction.
    operands: inputs of each device, per execution.
    results: outputs of each device, as far as the instruction's type shows.
    count: executions per step.
    groups: groups of partitions; of a permutation, pairs (source, target).
    group_size: devices per group, or slices if `between_slices`.
    between_slices: over the data-centre network.
    op_name: its origin in the traced program.
    source: the source line of its origin.
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
    """Input bytes of a device, per execution."""
    return sum(shape.data_bytes for shape in self.operands)

  @property
  def sent(self) -> float:
    """Bytes that a device sends per step, with a ring algorithm."""
    return self.count * self.payload * _RING[self.kind](self.group_size)


def collectives(
  module: Module, slice_of: Sequence[int] = ()
) -> list[Collective]:
  """The collectives that a program executes, in the order of its text.

  A start/done pair is one. TPU programs of several slices number the partitions
  of one slice and mark transfers between slices.

  Args:
    module: a program.
    slice_of: the slice of each partition, if the program numbers the
      partitions of several slices.
  """
  found = []
  for name, runs in module.runs.items():
    computation = module.computations[name]
    for instruction in computation.instructions.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS and not _is_continuation(computation, instruction):
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
  # XLA's reduce-scatter is a fusion that slices the result of an all-reduce.
  if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
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
  module: Module, computation: Computation, instruction: Instruction, runs: int
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


def _is_continuation(
  computation: Computation, instruction: Instruction
) -> bool:
  """Whether it continues an asynchronous collective started elsewhere.

  TPU programs repeat such a collective in each kernel that it overlaps with.
  """
  if "chain_id=" not in instruction.attributes:
    return False
  others = computation.instructions.values()
  return not any('"AsyncCollectiveStart"' in other.rest for other in others)


def device_groups(attributes: str, num_partitions: int) -> Groups:
  """The replica groups, in any of HLO's three notations.

  `{{0,1},{2,3}}`, `[2,2]<=[4]` (also reshaped and transposed), and
  `mesh['a'=2,'b'=2] {'b'}`; without groups, all partitions are one.
  """
  _, given, text = attributes.partition("replica_groups=")
  if text.startswith("mesh["):
    return _mesh_groups(text)
  if text.startswith("["):
    return _tuples(_iota(text))
  found = re.match(_LISTS, text)
  if given and found:
    return _lists(found[1])
  return (tuple(range(num_partitions)),)


def _lists(text: str) -> Groups:
  found = re.findall(r"\{([\d,]+)\}", text)
  return tuple(tuple(map(int, group.split(","))) for group in found)


def _iota(text: str, *, flat: bool = False) -> np.ndarray:
  """`[4,2]<=[2,4]T(1,0)`: 0, 1, 2, ... reshaped, transposed and reshaped."""
  shape, source, order = map(_numbers, _IOTA.match(text).groups())
  ids = np.arange(math.prod(shape)).reshape(source or shape)
  return (ids.transpose(order) if order else ids).reshape(-1 if flat else shape)


def _mesh_groups(text: str) -> Groups:
  """Groups of the devices of a mesh that differ only in the named axes.

  A part of an axis can be named: 'a':(2)4 is the 4 inside its outer 2.
  """
  sizes, ids, axes = _MESH.match(text).groups()
  sizes = {a or b: int(size) for a, b, size in _SIZE.findall(sizes)}
  devices = _mesh_devices(ids) if ids else np.arange(math.prod(sizes.values()))
  parts = {name: {1, size} for name, size in sizes.items()}
  named = []
  for name, before, size in _AXIS.findall(axes):
    first = int(before or 1)
    last = first * int(size or sizes[name])
    parts[name] |= {first, last}
    named.append((name, first, last))
  shape, inner = [], []
  for name, cuts in parts.items():
    for begin, end in itertools.pairwise(sorted(cuts)):
      if any(n == name and a <= begin < b for n, a, b in named):
        inner.append(len(shape))
      shape.append(end // begin)
  outer = [axis for axis in range(len(shape)) if axis not in inner]
  group = math.prod(shape[axis] for axis in inner)
  ordered = devices.reshape(shape).transpose(*outer, *inner)
  return _tuples(ordered.reshape(-1, group))


def _mesh_devices(text: str) -> np.ndarray:
  """Device ids, as an iota or a list of numbers."""
  if text.startswith("["):
    return _iota(text, flat=True)
  return np.array(_numbers(text.replace(" ", "")))


def _numbers(text: str | None) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(",")) if text else ()


def _tuples(rows: np.ndarray) -> Groups:
  return tuple(tuple(row) for row in rows.tolist())
