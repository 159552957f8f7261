"""Compiles a program for a slice and reads its costs or its memory error."""

from collections.abc import Iterator, Mapping
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
from lumiere_jax.contrib.planning.roofline import Roofline, roofline
from lumiere_jax.contrib.planning.topology import Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([\d.]+)([KMGT]?)B?"

_FORMS = (
  rf"HLO temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)",
  rf"Used {_AMOUNT} of {_AMOUNT} hbm",
)

_ALLOCATION = re.compile(
  rf"\d+\. Size: {_AMOUNT}\n(?:\s+Operator: (.*)\n)?\s+Shape: (\S+)"
)


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


def parse_oom(message: str) -> OutOfMemory | None:
  """Parses an error message; None: it is another error."""
  for form in _FORMS:
    if found := re.search(form, message):
      needed, needed_unit, limit, limit_unit = found.groups()
      return OutOfMemory(
        needed=_bytes(needed, needed_unit),
        limit=_bytes(limit, limit_unit),
        largest=tuple(map(_allocation, _ALLOCATION.finditer(message))),
      )
  return None


def _allocation(found: re.Match) -> Allocation:
  amount, unit, operator, shape = found.groups()
  name = re.search(r'op_name="([^"]*)"', operator or "")
  return Allocation(
    bytes=_bytes(amount, unit), shape=shape, op_name=name[1] if name else ""
  )


def _bytes(amount: str, unit: str) -> int:
  return int(float(amount) * _UNITS[unit])


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

  arguments: int | None
  outputs: int | None
  temporaries: int | None
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
    devices: number of devices.
    num_slices: number of slices.
    fits: whether the program fits in memory.
    memory: of each device.
    model_flops: per step, of all devices together.
    measured: costs of the program; None if it does not fit.
    exhausted: the compiler's error if it does not fit.
    compile_seconds: on this machine.
    fast: whether compilation was fast, at the cost of the program.
    versions: of jax and libtpu.
    about: job, config, overrides, settings, as given.
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
  arguments: Any = None,
  fast: bool = False,
  about: Mapping[str, Any] | None = None,
) -> Plan:
  """Compiles a program for a slice and computes its costs.

  Args:
    lowered: with arguments sharded over the topology's devices.
    topology: the slice.
    model_flops: per step, of all devices together.
    arguments: the abstract arguments, with shardings; their size is then known
      even if the program does not fit.
    fast: compile faster, to a slower program.
    about: recorded in the plan: `job`, `config`, `overrides`, and `settings`,
      the experiment as a nested dict, on which advice is based.

  Raises:
    jax.errors.JaxRuntimeError: compilation fails for another reason than
      memory.
  """
  start = time.perf_counter()
  compiled, exhausted = None, None
  with _compiler_settings(fast):
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      exhausted = parse_oom(str(error))
      if exhausted is None:
        raise
  seconds = time.perf_counter() - start
  if exhausted:
    size = None if arguments is None else argument_bytes(arguments)
    memory = _exhausted_memory(exhausted, size)
  else:
    memory = _memory(compiled.memory_analysis(), topology)
  return Plan(
    topology=str(topology),
    devices=len(topology.devices),
    num_slices=topology.num_slices,
    fits=exhausted is None,
    memory=memory,
    model_flops=model_flops,
    measured=compiled
    and measure(parse(compiled.as_text()), topology, memory, model_flops),
    exhausted=exhausted,
    compile_seconds=seconds,
    fast=fast,
    versions=dict(_versions()),
    about=about or {},
  )


def measure(
  module: Module, topology: Topology, memory: Memory, model_flops: float
) -> ProgramCosts:
  """The costs of a compiled program."""
  found = collectives(module)
  flops = hlo_cost.compiled_flops(module)
  # It reads its arguments and writes its outputs at least once.
  moved = max(hlo_cost.traffic(module), memory.arguments + memory.outputs)
  return ProgramCosts(
    flops=flops,
    moved=moved,
    traffic=group(found),
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


def group(found: list[Collective]) -> tuple[Traffic, ...]:
  """Sums collectives by kind and network; the largest first."""
  kinds = {}
  for collective in found:
    key = (collective.kind, collective.between_slices)
    kinds.setdefault(key, []).append(collective)
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


def argument_bytes(arguments: Any) -> int:
  """Bytes on each device of abstract arrays that carry shardings."""
  total = 0
  for leaf in jax.tree.leaves(arguments):
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else None
    part = jax.ShapeDtypeStruct(shape or leaf.shape, leaf.dtype)
    total += part.size * part.dtype.itemsize
  return total


def _memory(stats, topology: Topology) -> Memory:
  outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  parts = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": outputs,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  limit = int(topology.chip.hbm_bytes)
  return Memory(**parts, needed=sum(parts.values()), limit=limit)


def _exhausted_memory(exhausted: OutOfMemory, arguments: int | None) -> Memory:
  known = arguments is not None
  return Memory(
    arguments=arguments,
    outputs=None,
    temporaries=max(0, exhausted.needed - arguments) if known else None,
    code=None,
    needed=exhausted.needed,
    limit=exhausted.limit,
  )


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
  if fast:
    settings |= fast_compile_options()
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
