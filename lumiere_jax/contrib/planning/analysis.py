"""What the TPU compiler says when a program needs more memory than there is."""

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
  """An array that the compiler named.

  Attributes:
    bytes: as laid out.
    shape: with its layout.
    op_name: where in the traced program it comes from.
  """

  bytes: int
  shape: str
  op_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhausted:
  """A program that does not fit.

  Attributes:
    needed, limit: bytes of a chip's memory.
    largest: arrays that it named: none, if it gave up at once.
  """

  needed: int
  limit: int
  largest: tuple[Allocation, ...]


def read_exhausted(message: str) -> Exhausted | None:
  """The figures in an error; None: it is about something else."""
  for form in _FORMS:
    if found := re.search(form, message):
      needed, needed_unit, limit, limit_unit = found.groups()
      return Exhausted(
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
  """Bytes of each device's main memory.

  Attributes:
    arguments: state and batch; None: not known, as it does not fit.
    outputs: results that take no place of an argument.
    temporaries: whatever lives in between.
    code: the program itself.
    needed: all of these together, or what the compiler said it lacks.
    limit: what a program may use.
  """

  arguments: int | None
  outputs: int | None
  temporaries: int | None
  code: int | None
  needed: int
  limit: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
  """Collectives of one kind, added up.

  Attributes:
    kind: e.g. "all-gather".
    between_slices: over the data centre's network.
    count: how often one runs in a step.
    sent: bytes that a device sends in a step.
    largest: op_name of the one that sends most.
  """

  kind: str
  between_slices: bool
  count: int
  sent: float
  largest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What is read from a compiled program; of each device, in one step.

  Attributes:
    flops: products and convolutions that it computes.
    moved: bytes between a device and its main memory.
    traffic: its collectives by kind, the heaviest first.
    tensors: its largest arrays.
    roofline: the least time it can take.
    unknown_loops: loops whose turns the text does not tell: counted once.
  """

  flops: int
  moved: int
  traffic: tuple[Traffic, ...]
  tensors: tuple[hlo_cost.Tensor, ...]
  roofline: Roofline
  unknown_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a job takes on a slice.

  Attributes:
    topology: in words.
    devices: how many run it.
    num_slices: that they are in.
    fits: whether it compiles within the memory.
    memory: of each device.
    model_flops: operations of the model in a step, of all devices together.
    measured: None where it does not fit.
    exhausted: what the compiler said where it does not.
    compile_seconds: on this machine.
    fast: whether the compiler was told to hurry: its program needs no less.
    versions: of jax and libtpu.
    about: job, config, overrides, settings, as given.
  """

  topology: str
  devices: int
  num_slices: int
  fits: bool
  memory: Memory
  model_flops: float
  measured: Measured | None
  exhausted: Exhausted | None
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
  """Compiles a program for a slice and measures it.

  Args:
    lowered: with arguments sharded over the topology's devices.
    topology: the slice.
    model_flops: operations of the model in a step, of all devices together.
    arguments: the abstract arguments, with shardings; their bytes are told
      even if the program does not fit.
    fast: spend less time on the compilation, for a program that is slower.
    about: what to note beside the figures: `job`, `config`, `overrides`, and
      `settings`, the experiment as a nested dict, which advice goes by.

  Raises:
    jax.errors.JaxRuntimeError: the compiler fails for another reason than
      memory.
  """
  begun = time.perf_counter()
  compiled, exhausted = None, None
  with _compiling(fast):
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      exhausted = read_exhausted(str(error))
      if exhausted is None:
        raise
  seconds = time.perf_counter() - begun
  if exhausted:
    given = None if arguments is None else argument_bytes(arguments)
    memory = _exhausted_memory(exhausted, given)
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
) -> Measured:
  """Reads off a compiled program what a step takes."""
  found = collectives(module)
  flops = hlo_cost.compiled_flops(module)
  # At least, it reads what it is given and writes what it gives.
  moved = max(hlo_cost.traffic(module), memory.arguments + memory.outputs)
  return Measured(
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
  """Collectives added up by kind and network, the heaviest first."""
  kinds = {}
  for collective in found:
    key = (collective.kind, collective.between_slices)
    kinds.setdefault(key, []).append(collective)
  traffic = [
    Traffic(
      kind=kind,
      between_slices=between,
      count=sum(c.count for c in those),
      sent=sum(c.sent for c in those),
      largest=max(those, key=lambda c: c.sent).op_name,
    )
    for (kind, between), those in kinds.items()
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


def _exhausted_memory(exhausted: Exhausted, arguments: int | None) -> Memory:
  return Memory(
    arguments=arguments,
    outputs=None,
    temporaries=None
    if arguments is None
    else max(0, exhausted.needed - arguments),
    code=None,
    needed=exhausted.needed,
    limit=exhausted.limit,
  )


def _versions() -> Iterator[tuple[str, str]]:
  for name in ("jax", "libtpu"):
    with contextlib.suppress(metadata.PackageNotFoundError):
      yield name, metadata.version(name)


def hurry() -> dict[str, Any]:
  """Settings of JAX that make its compilers spend the least time."""
  names = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
  if all(hasattr(jax.config, name) for name in names):
    return dict.fromkeys(names, -1.0)
  # Since JAX 0.11 there are levels instead.
  return {"jax_optimization_level": "O0", "jax_memory_fitting_level": "O0"}


@contextlib.contextmanager
def _compiling(fast: bool) -> Iterator[None]:
  """Compiler settings for programs that never run here."""
  # Kept programs are of devices that are there.
  settings = {"jax_enable_compilation_cache": False}
  if fast:
    settings |= hurry()
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
