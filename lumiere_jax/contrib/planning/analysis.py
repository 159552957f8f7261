"""Compiles a program for a slice and reads its costs or its memory error."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
from importlib import metadata
import re
import time
from typing import Any

import jax

from lumiere_jax.contrib.planning import hlo_cost
from lumiere_jax.contrib.planning.collectives import Collective, collectives
from lumiere_jax.contrib.planning.hlo import Module, parse
from lumiere_jax.contrib.planning.topology import Topology
from lumiere_jax.parallel.hardware import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
  """An array in the compiler's out-of-memory message.

  Attributes:
    bytes: with padding.
    shape: with its layout.
    op_name: its origin in the traced program.
  """

  bytes: int
  shape: str
  op_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfMemory:
  """The compiler's out-of-memory error.

  Attributes:
    needed, limit: bytes of a device's memory.
    largest: the arrays it names; may be empty.
  """

  needed: int
  limit: int
  largest: tuple[Allocation, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of each device's main memory; None: unknown, as it does not fit.

  Attributes:
    arguments: state and batch.
    outputs: results that do not reuse an argument's buffer.
    temporaries: intermediate values.
    code: the program itself.
    needed: the sum, or the amount in the compiler's error.
    limit: available to a program.
  """

  arguments: int
  outputs: int | None
  temporaries: int
  code: int | None
  needed: int
  limit: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
  """All collectives of one kind.

  Attributes:
    kind: e.g. "all-gather".
    between_slices: over the data-centre network.
    count: executions per step.
    sent: bytes that a device sends per step.
    largest: op_name of the one that sends most.
  """

  kind: str
  between_slices: bool
  count: int
  sent: float
  largest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Seconds per step for each resource at its peak.

  The step takes at least the longest, as if all overlapped. Latency, small
  kernels, and links that a collective cannot use (a group along one axis of a
  torus uses a third of them) make it longer.

  Attributes:
    compute: FLOPs of the compiled program.
    memory: bytes that its kernels read and write.
    links: bytes sent within the slice, over all links of a device.
    network: bytes sent between slices, over a device's share of the network.
    model: model FLOPs, over all devices.
  """

  compute: float
  memory: float
  links: float
  network: float
  model: float

  @property
  def terms(self) -> dict[str, float]:
    """Resource -> seconds."""
    names = ("compute", "memory", "links", "network")
    return {name: getattr(self, name) for name in names}

  @property
  def bound(self) -> float:
    """The lower bound in seconds."""
    return max(self.terms.values())

  @property
  def bound_by(self) -> str:
    """The resource that sets the bound."""
    return max(self.terms, key=lambda name: self.terms[name])

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation at the bound, in [0, 1]."""
    return self.model / self.bound if self.bound else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramCosts:
  """Costs of a compiled program, per device and step.

  Attributes:
    flops: of matrix products and convolutions.
    moved: bytes between the device and its main memory.
    traffic: collectives by kind, the largest first.
    tensors: the largest arrays.
    roofline: the lower bound of the step time.
    unknown_loops: loops with an unknown trip count; counted once.
  """

  flops: int
  moved: int
  traffic: tuple[Traffic, ...]
  tensors: tuple[hlo_cost.Tensor, ...]
  roofline: Roofline
  unknown_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Costs of a job on a slice.

  Attributes:
    topology: its description.
    devices, num_slices: their numbers.
    fits: whether the program fits in memory.
    memory: of each device.
    model_flops: per step, of all devices together.
    measured: costs of the program; None if it does not fit.
    exhausted: the compiler's error if it does not fit.
    compile_seconds: on this machine.
    fast: whether compilation was fast, at the cost of the program.
    versions: of jax and libtpu.
    about: see `analyse`.
  """

  topology: str
  devices: int
  num_slices: int
  fits: bool
  memory: Memory
  model_flops: float
  measured: ProgramCosts | None
  exhausted: OutOfMemory | None
  compile_seconds: float
  fast: bool
  versions: Mapping[str, str]
  about: Mapping[str, Any]


def analyse(
  lowered: jax.stages.Lowered,
  *,
  topology: Topology,
  model_flops: float,
  arguments: Any,
  about: Mapping[str, Any],
  fast: bool = False,
) -> Plan:
  """Compiles a program for a slice and computes its costs.

  Args:
    lowered: with arguments sharded over the topology's devices.
    topology: the slice.
    model_flops: per step, of all devices together.
    arguments: the abstract arguments, with shardings; their size is then known
      even if the program does not fit.
    about: recorded in the plan: `job`, `config`, `overrides`, `mesh`, and
      `settings`, the experiment as a nested dict, on which advice is based.
    fast: compile faster, to a slower program.

  Raises:
    jax.errors.JaxRuntimeError: compilation fails for another reason than
      memory.
  """
  start = time.perf_counter()
  measured, exhausted = None, None
  with _compiler_settings(fast):
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      exhausted = parse_oom(str(error))
      if exhausted is None:
        raise
  seconds = time.perf_counter() - start
  if exhausted:
    size = argument_bytes(arguments)
    memory = Memory(
      arguments=size,
      outputs=None,
      temporaries=max(0, exhausted.needed - size),
      code=None,
      needed=exhausted.needed,
      limit=exhausted.limit,
    )
  else:
    memory = _memory(compiled.memory_analysis(), topology)
    module = parse(compiled.as_text() or "")
    measured = measure(module, topology, memory, model_flops)
  return Plan(
    topology=str(topology),
    devices=len(topology.devices),
    num_slices=topology.num_slices,
    fits=exhausted is None,
    memory=memory,
    model_flops=model_flops,
    measured=measured,
    exhausted=exhausted,
    compile_seconds=seconds,
    fast=fast,
    versions=dict(_versions()),
    about=about,
  )


def _memory(stats: Any, topology: Topology) -> Memory:
  parts = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  limit = int(topology.chip.hbm_bytes)
  return Memory(**parts, needed=sum(parts.values()), limit=limit)


def measure(
  module: Module, topology: Topology, memory: Memory, model_flops: float
) -> ProgramCosts:
  """The costs of a compiled program."""
  found = collectives(module)
  flops = hlo_cost.compiled_flops(module)
  # It reads its arguments and writes its outputs at least once.
  least = memory.arguments + (memory.outputs or 0)
  moved = max(hlo_cost.traffic(module), least)
  return ProgramCosts(
    flops=flops,
    moved=moved,
    traffic=_by_kind(found),
    tensors=tuple(hlo_cost.largest_tensors(module)),
    roofline=roofline(
      topology.chip,
      devices=len(topology.devices),
      flops=flops,
      moved=moved,
      collectives=found,
      model_flops=model_flops,
    ),
    unknown_loops=len(module.unknown_loops),
  )


def _by_kind(found: list[Collective]) -> tuple[Traffic, ...]:
  kinds: dict[tuple[str, bool], list[Collective]] = {}
  for each in found:
    kinds.setdefault((each.kind, each.between_slices), []).append(each)
  traffic = [
    Traffic(
      kind=kind,
      between_slices=between,
      count=sum(c.count for c in same),
      sent=sum(c.sent for c in same),
      largest=max(same, key=lambda c: c.sent).op_name,
    )
    for (kind, between), same in kinds.items()
  ]
  return tuple(sorted(traffic, key=lambda t: -t.sent))


def roofline(
  chip: Chip,
  *,
  devices: int,
  flops: float,
  moved: float,
  collectives: Iterable[Collective],
  model_flops: float,
) -> Roofline:
  """The roofline of a program on a number of devices.

  Per step: `flops` and `moved`, in bytes, are those of one device,
  `model_flops` those of all devices together.
  """
  sent = {False: 0.0, True: 0.0}
  for collective in collectives:
    sent[collective.between_slices] += collective.sent
  return Roofline(
    compute=flops / chip.flops,
    memory=moved / chip.hbm_bandwidth,
    links=sent[False] / chip.ici_bandwidth,
    network=sent[True] / chip.dcn_bandwidth,
    model=model_flops / (devices * chip.flops),
  )


_AMOUNT = r"([\d.]+[KMGT]?)B?"
_TOTALS = re.compile(
  rf"HLO temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"
  rf"|Used {_AMOUNT} of {_AMOUNT} hbm"
)
_ALLOCATION = re.compile(
  rf"\d+\. Size: {_AMOUNT}\n"
  r'(?:\s+Operator: (?:.*?op_name="([^"]*)")?.*\n)?\s+Shape: (\S+)'
)


def parse_oom(message: str) -> OutOfMemory | None:
  """Parses an error message; None: it is another error."""
  found = _TOTALS.search(message)
  if not found:
    return None
  needed, limit = map(_bytes, filter(None, found.groups()))
  largest = tuple(
    Allocation(bytes=_bytes(size), shape=shape, op_name=name)
    for size, name, shape in _ALLOCATION.findall(message)
  )
  return OutOfMemory(needed=needed, limit=limit, largest=largest)


def _bytes(amount: str) -> int:
  number = amount.rstrip("KMGT")
  unit = "KMGT".find(amount[len(number) :] or " ") + 1
  return int(float(number) * 1024**unit)


def argument_bytes(arguments: Any) -> int:
  """Bytes on each device of abstract arrays that carry shardings."""
  total = 0
  for leaf in jax.tree.leaves(arguments):
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else None
    part = jax.ShapeDtypeStruct(shape or leaf.shape, leaf.dtype)
    total += part.size * part.dtype.itemsize
  return total


def _versions() -> Iterator[tuple[str, str]]:
  for name in ("jax", "libtpu"):
    with contextlib.suppress(metadata.PackageNotFoundError):
      yield name, metadata.version(name)


def fast_compile_options() -> dict[str, Any]:
  """JAX settings for the fastest compilation."""
  names = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
  if all(hasattr(jax.config, name) for name in names):
    return dict.fromkeys(names, -1.0)
  # JAX 0.11 has levels instead.
  return {"jax_optimization_level": "O0", "jax_memory_fitting_level": "O0"}


@contextlib.contextmanager
def _compiler_settings(fast: bool) -> Iterator[None]:
  """Compiler settings for programs that never run here."""
  # The compilation cache needs present devices.
  settings = {"jax_enable_compilation_cache": False}
  settings |= fast_compile_options() if fast else {}
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
