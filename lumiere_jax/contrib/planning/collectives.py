"""Collectives of a compiled program: kinds, groups, bytes."""

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
    operands: inputs of each device, per execution.
    results: outputs of each device, as far as the instruction's type shows.
    count: executions per step.
    groups: groups of partitions; of a permutation, pairs (source, target).
    group_size: devices per group, or slices if `between_slices`.
    between_slices: over the data-centre network.
    op_name, source: its origin in the traced program.
  """

  kind: str
  operands: tuple[Shape, ...]
  results: tuple[Shape, ...]
  count: int
  groups: Groups
  group_size: int
  between_slices: bool
  op_name: str
  source: str

  @property
  def sent(self) -> float:
    """Bytes that a device sends per step, with a ring algorithm."""
    payload = sum(shape.data_bytes for shape in self.operands)
    return self.count * payload * _RING[self.kind](self.group_size)


def collectives(module: Module) -> list[Collective]:
  """The collectives that a program executes, in the order of its text.

  A start/done pair is one. TPU programs of several slices number the partitions
  of one slice and mark transfers between slices.
  """
  found = []
  for name, runs in module.runs.items():
    computation = module.computations[name]
    for instruction in computation.instructions.values():
      kind = _kind(computation, instruction)
      if not kind:
        continue
      between_slices = instruction.opcode == "send"
      groups = _groups(instruction, module.num_partitions)
      # A permutation that moves nothing has no groups.
      size = max(map(len, groups), default=1)
      if between_slices:
        size = _count_slices(instruction)
      operands = computation.operand_shapes(instruction)
      op_name, source = module.origin(computation, instruction)
      found.append(
        Collective(
          kind=kind,
          operands=tuple(
            s for shapes in operands for s in shapes if s.dtype != "token"
          ),
          results=instruction.shapes,
          count=runs,
          groups=groups,
          group_size=size,
          between_slices=between_slices,
          op_name=op_name,
          source=source,
        )
      )
  return found


def _kind(computation: Computation, instruction: Instruction) -> str:
  """One of `KINDS`; '' for other instructions, and for continuations."""
  kind = instruction.opcode.removesuffix("-start")
  if kind == "send" and _BETWEEN_SLICES in instruction.attributes:
    kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or ""
    kind = kind.lower().replace("_", "-")
    return kind if kind in KINDS else "collective-permute"
  if kind not in KINDS or _is_continuation(computation, instruction):
    return ""
  # XLA's reduce-scatter is a fusion that slices the result of an all-reduce.
  if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
    return "reduce-scatter"
  return kind


def _is_continuation(
  computation: Computation, instruction: Instruction
) -> bool:
  """Whether it continues an asynchronous collective started elsewhere.

  TPU programs repeat such a collective in each kernel that it overlaps with.
  """
  if "chain_id=" not in instruction.attributes:
    return False
  others = computation.instructions.values()
  return not any('"AsyncCollectiveStart"' in i.attributes for i in others)


def _count_slices(send: Instruction) -> int:
  target = send.attribute(r'_xla_megascale_target="\{([\d,:]*)\}') or ""
  return max(2, len(target.split(",")))


def _groups(instruction: Instruction, num_partitions: int) -> Groups:
  if instruction.opcode == "send":
    return ()
  if not instruction.opcode.startswith("collective-permute"):
    return device_groups(instruction.attributes, num_partitions)
  pairs = instruction.attribute("source_target_pairs=" + _LISTS) or ""
  return tuple(pair for pair in _lists(pairs) if pair[0] != pair[1])


def device_groups(attributes: str, num_partitions: int) -> Groups:
  """The replica groups, in any of HLO's three notations.

  `{{0,1},{2,3}}`, `[2,2]<=[4]` (also reshaped and transposed), and
  `mesh['a'=2,'b'=2] {'b'}`; without groups, all partitions are one.
  """
  _, _, text = attributes.partition("replica_groups=")
  if mesh := _MESH.match(text):
    return _mesh_groups(*mesh.groups())
  if text.startswith("["):
    return _tuples(_iota(text))
  if lists := re.match(_LISTS, text):
    return _lists(lists[1])
  return (tuple(range(num_partitions)),)


def _lists(text: str) -> Groups:
  return tuple(map(_numbers, re.findall(r"\{([\d,]+)\}", text)))


def _iota(text: str) -> np.ndarray:
  """`[4,2]<=[2,4]T(1,0)`: 0, 1, 2, ... reshaped, transposed and reshaped."""
  (parts,) = _IOTA.findall(text)[:1]
  shape, source, order = map(_numbers, parts)
  ids = np.arange(math.prod(shape)).reshape(source or shape)
  return ids.transpose(order or range(ids.ndim)).reshape(shape)


def _mesh_groups(sizes_text: str, ids: str | None, axes: str) -> Groups:
  """Groups of the devices of a mesh that differ only in the named axes.

  A part of an axis can be named: 'a':(2)4 is the 4 inside its outer 2.
  """
  sizes = {a or b: int(size) for a, b, size in _SIZE.findall(sizes_text)}
  devices = np.arange(math.prod(sizes.values()))
  if ids:
    listed = ids.replace(" ", "")
    devices = _iota(ids) if ids[0] == "[" else np.array(_numbers(listed))
  parts = {name: {1, size} for name, size in sizes.items()}
  named = []
  for name, before, size in _AXIS.findall(axes):
    first = int(before or 1)
    last = first * int(size or sizes[name])
    parts[name] |= {first, last}
    named.append((name, first, last))
  shape: list[int] = []
  inner = []
  for name, cuts in parts.items():
    for begin, end in itertools.pairwise(sorted(cuts)):
      if any(n == name and a <= begin < b for n, a, b in named):
        inner.append(len(shape))
      shape.append(end // begin)
  outer = [axis for axis in range(len(shape)) if axis not in inner]
  group = math.prod(shape[axis] for axis in inner)
  ordered = devices.reshape(shape).transpose(*outer, *inner)
  return _tuples(ordered.reshape(-1, group))


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(",")) if text else ()


def _tuples(rows: np.ndarray) -> Groups:
  return tuple(tuple(row) for row in rows.tolist())
