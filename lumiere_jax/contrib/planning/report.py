"""Reports of a plan: text, JSON, and advice for jobs that do not fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

from lumiere_jax.contrib.planning.analysis import Memory, Plan, ProgramCosts
from lumiere_jax.contrib.planning.hlo_cost import Tensor
from lumiere_jax.contrib.planning.roofline import Roofline
from lumiere_jax.errors import format_message, option
from lumiere_jax.storage.atomic import write_json

_MAX_FSDP = 64
"""The widths of the full models (704 = 64 x 11) do not divide further."""


def advice(plan: Plan) -> list[str]:
  """Overrides that reduce memory, the most promising first."""
  memory = plan.memory
  job = _Job(plan)
  parts = [_for_activations(job), _for_weights(job)]
  if (memory.arguments or 0) > memory.limit / 2:
    parts.reverse()
  steps = [step for part in parts for step in part]
  return [*steps, f"a larger {option('topology')}"]


class _Job:
  """Settings of the planned job.

  Attributes:
    training: whether it is a training step.
    model, train, mesh: settings; empty if unknown.
    devices: of all slices.
    slice_devices: of one slice; fsdp and space do not span slices.
    fsdp, space: sizes of these axes.
  """

  def __init__(self, plan: Plan):
    settings = plan.about.get("settings", {})
    self.training = plan.about.get("job", "train") == "train"
    self.model = settings.get("model", {})
    self.execution = settings.get("execution", {})
    self.train = settings.get("train", {})
    self.mesh = settings.get("mesh", {})
    self.devices = plan.devices
    self.slice_devices = plan.devices // plan.num_slices
    self.fsdp = _axis_size(self.mesh, "fsdp", plan.devices)
    self.space = _axis_size(self.mesh, "space", plan.devices)
    self.accumulate = self.train.get("accumulate", 1)

  def samples_per_device(self, accumulate: int) -> float:
    """Samples that a device processes at a time."""
    if not self.training:
      return 1
    batch = self.train.get("batch_size", 1) / accumulate
    return batch * self.space / self.devices

  def mesh_override(self, axis: str, size: int) -> str:
    """An override of a mesh axis, and of `data` if that is fixed."""
    fixed = self.mesh.get("data", -1) != -1
    data = " " + option("config.mesh.data", -1) if fixed else ""
    return option(f"config.mesh.{axis}", size) + data


def _for_weights(job: _Job) -> Iterator[str]:
  """Against the memory of weights, moments and averages."""
  frozen = job.training and job.train.get("trainable", ".*") != ".*"
  if frozen and job.train.get("frozen_dtype") == "source":
    yield (
      f"{option('config.train.frozen_dtype', 'bfloat16')} (halves frozen "
      "weights that are float32)"
    )
  for fsdp in (4 * job.fsdp, 2 * job.fsdp):
    if fsdp <= _MAX_FSDP and job.slice_devices % (fsdp * job.space) == 0:
      override = job.mesh_override("fsdp", fsdp)
      yield f"{override} (weights and moments in {fsdp} shards)"
      break


def _for_activations(job: _Job) -> Iterator[str]:
  """Against the memory of temporaries."""
  if job.training:
    yield from _for_gradients(job)
  space = 2 * job.space
  few = job.samples_per_device(job.accumulate) <= 1
  if few and job.slice_devices % (job.fsdp * space) == 0:
    override = job.mesh_override("space", space)
    yield f"{override} (the rows of a sample on {space} devices)"


def _for_gradients(job: _Job) -> Iterator[str]:
  levels = len(job.model.get("channels", ()))
  remat = tuple(job.execution.get("remat") or ("none",) * levels)
  if set(remat) - {"full"}:
    value = ", ".join(["'full'"] * levels)
    override = option("config.execution.remat", f'"({value})"')
    yield f"{override} (computes all blocks twice)"
  fewer = job.samples_per_device(2 * job.accumulate)
  if fewer >= 1 and fewer == int(fewer):
    yield (
      f"{option('config.train.accumulate', 2 * job.accumulate)} (half the "
      "samples at a time, the same step)"
    )


def _axis_size(mesh: Mapping[str, Any], axis: str, devices: int) -> int:
  """The size of a mesh axis, with -1 replaced."""
  size = mesh.get(axis, 1)
  if size != -1:
    return size
  known = 1
  for other in mesh.values():
    known *= max(1, other)
  return max(1, devices // known)


_MAX_ROWS = 8
_MAX_NAME = 60

_TERMS = {
  "compute": "matrix products and convolutions",
  "memory": "memory reads and writes",
  "links": "links within a slice",
  "network": "network between slices",
}


def save(plan: Plan, path: str | os.PathLike) -> None:
  """Writes a plan as JSON, in bytes, FLOPs and seconds."""
  content = dataclasses.asdict(plan)
  if plan.measured:
    bound = plan.measured.roofline
    content["measured"]["roofline"] |= {
      name: getattr(bound, name) for name in ("bound", "bound_by", "mfu")
    }
  content["advice"] = [] if plan.fits else [*map(format_message, advice(plan))]
  write_json(path, content)


def text(plan: Plan) -> str:
  """A plan as text."""
  parts = [_head(plan), _memory(plan)]
  if plan.measured:
    parts += _measured(plan, plan.measured)
  elif plan.exhausted.largest:
    parts.append(
      "Largest arrays of each device\n"
      + _table(
        (_bytes(a.bytes), a.shape, a.op_name) for a in plan.exhausted.largest
      )
    )
  if not plan.fits:
    steps = enumerate(advice(plan), 1)
    parts.append(
      "To reduce memory, try\n"
      + "\n".join(f"  {n}. {format_message(step)}" for n, step in steps)
    )
  return "\n\n".join(parts)


def _head(plan: Plan) -> str:
  about = plan.about
  job = " ".join(
    [about.get("job", "a job"), "of", about.get("config", "a config")]
  )
  lines = [f"{job}, on {plan.topology}"]
  if about.get("overrides"):
    lines.append("  " + " ".join(about["overrides"]))
  versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items())
  fast = ", fast mode" if plan.fast else ""
  lines.append(
    f"  compiled in {plan.compile_seconds:.0f} s{fast} ({versions}), not run"
  )
  return "\n".join(lines)


def _memory(plan: Plan) -> str:
  memory = plan.memory
  share = memory.needed / memory.limit
  if plan.fits:
    verdict = f"fits: {share:.0%} of"
  else:
    verdict = f"DOES NOT FIT: needs {_bytes(memory.needed)}, {share:.1f} times"
  rows = [
    (_bytes(size), words) for size, words in _parts(memory) if size is not None
  ]
  return (
    f"Memory of each device: {verdict} the available {_bytes(memory.limit)}\n"
    + _table(rows)
  )


def _parts(memory: Memory) -> Iterator[tuple[int | None, str]]:
  yield memory.arguments, "arguments: state and batch"
  yield memory.outputs, "outputs"
  yield memory.temporaries, "temporaries"
  yield memory.code, "program code"


def _measured(plan: Plan, measured: ProgramCosts) -> Iterator[str]:
  model = plan.model_flops / plan.devices
  ratio = measured.flops / model if model else 0
  yield (
    "Operations of each device per step\n"
    + _table(
      [
        (_flops(model), "of the model: matrix products and convolutions"),
        (_flops(measured.flops), f"as compiled: {ratio:.2f} times that"),
      ]
    )
  )
  yield _roofline(measured.roofline)
  if measured.traffic:
    yield (
      "Sent by each device per step\n"
      + _table(
        (
          _bytes(t.sent),
          f"{t.count} x {t.kind}"
          + (" between slices" if t.between_slices else ""),
          _short(t.largest),
        )
        for t in measured.traffic
      )
    )
  yield (
    "Largest arrays of each device (not all live at once)\n"
    + _table(
      (
        _bytes(t.bytes),
        f"{t.shape}" + (f" x {t.copies}" if t.copies > 1 else ""),
        _padding(t),
        _short(t.op_name),
        t.source,
      )
      for t in measured.tensors[:_MAX_ROWS]
    )
  )
  if measured.unknown_loops:
    yield (
      f"{measured.unknown_loops} loops have an unknown trip count; they count "
      "as if run once"
    )


def _roofline(roofline: Roofline) -> str:
  rows = [
    (_seconds(seconds), _TERMS[name])
    for name, seconds in roofline.terms.items()
    if seconds
  ]
  return (
    f"A step takes at least {_seconds(roofline.bound)}, bound by "
    f"{_TERMS[roofline.bound_by]}: at most {roofline.mfu:.0%} model FLOPs "
    "utilisation\n" + _table(rows)
  )


def _table(rows: Iterable[Sequence[str]]) -> str:
  """Aligned columns; the first is right-aligned."""
  rows = [tuple(map(str, row)) for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = (c.ljust(w) for c, w in zip(others, widths[1:], strict=True))
    lines.append("  ".join(["", first.rjust(widths[0]), *cells]).rstrip())
  return "\n".join(lines)


def _padding(tensor: Tensor) -> str:
  """The padding factor of its layout, if large."""
  factor = tensor.bytes / max(1, tensor.shape.data_bytes)
  return f"padded {factor:.1f} times" if factor > 1.2 else ""


def _short(name: str) -> str:
  """The end of a long name, which tells it apart from others."""
  return name if len(name) <= _MAX_NAME else "..." + name[3 - _MAX_NAME :]


def _bytes(count: float) -> str:
  for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
    if count >= size:
      return f"{count / size:,.2f} {unit}"
  return f"{count:.0f} B"


def _flops(count: float) -> str:
  for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
    if count >= size:
      return f"{count / size:,.2f} {unit}"
  return f"{count / 1e6:.2f} MFLOP"


def _seconds(seconds: float) -> str:
  return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:,.3f} ms"
