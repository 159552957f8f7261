"""What would make a job smaller, as overrides to try."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

from lumiere_jax.contrib.planning.analysis import Measured, Memory, Plan
from lumiere_jax.contrib.planning.hlo_cost import Tensor
from lumiere_jax.contrib.planning.roofline import Roofline
from lumiere_jax.storage.atomic import write_json

_MOST_FSDP = 64
"""The full models' widths (704 = 64 x 11) divide no further."""


def advice(plan: Plan) -> list[str]:
  """What helps, the first to try first: against what takes most memory."""
  memory = plan.memory
  now = _Now(plan)
  parts = [_of_activations(now), _of_weights(now)]
  if (memory.arguments or 0) > memory.limit / 2:
    parts.reverse()
  return [*(step for part in parts for step in part), "a larger --topology"]


class _Now:
  """What the experiment says.

  Attributes:
    training: whether it is a training step.
    model, train, mesh: settings; empty where they are not known.
    devices: all of them.
    together: devices of a slice: fsdp and space stay within one.
    fsdp, space: sizes of these axes.
  """

  def __init__(self, plan: Plan):
    settings = plan.about.get("settings", {})
    self.training = plan.about.get("job", "train") == "train"
    self.model = settings.get("model", {})
    self.train = settings.get("train", {})
    self.mesh = settings.get("mesh", {})
    self.devices = plan.devices
    self.together = plan.devices // plan.num_slices
    self.fsdp = _size(self.mesh, "fsdp", plan.devices)
    self.space = _size(self.mesh, "space", plan.devices)

  @property
  def accumulate(self) -> int:
    """Micro-batches."""
    return self.train.get("accumulate", 1)

  def samples_each(self, accumulate: int) -> float:
    """Samples that a device works on at a time."""
    if not self.training:
      return 1
    batch = self.train.get("batch_size", 1) / accumulate
    return batch * self.space / self.devices

  def on_mesh(self, override: str) -> str:
    """An override of the mesh, with what else must change for it."""
    fixed = self.mesh.get("data", -1) != -1
    return override + (" --config.mesh.data=-1" if fixed else "")


def _of_weights(now: _Now) -> Iterator[str]:
  """For what is held from step to step: weights, moments, averages."""
  frozen = now.training and now.train.get("trainable", ".*") != ".*"
  if frozen and now.train.get("frozen_dtype") == "source":
    yield (
      "--config.train.frozen_dtype=bfloat16 (half of the frozen weights, if "
      "they are float32)"
    )
  wider = [
    fsdp
    for fsdp in (4 * now.fsdp, 2 * now.fsdp)
    if fsdp <= _MOST_FSDP and now.together % (fsdp * now.space) == 0
  ]
  if wider:
    yield (
      now.on_mesh(f"--config.mesh.fsdp={wider[0]}")
      + f" (weights and moments in {wider[0]} parts)"
    )


def _of_activations(now: _Now) -> Iterator[str]:
  """For what lives within a step."""
  if now.training:
    yield from _of_gradients(now)
  space = 2 * now.space
  few = now.samples_each(now.accumulate) <= 1
  if few and now.together % (now.fsdp * space) == 0:
    yield (
      now.on_mesh(f"--config.mesh.space={space}")
      + f" (the rows of a sample shared by {space} devices)"
    )


def _of_gradients(now: _Now) -> Iterator[str]:
  levels = len(now.model.get("channels", ()))
  remat = tuple(now.model.get("remat") or ("none",) * levels)
  if set(remat) - {"full"}:
    words = ", ".join(["'full'"] * levels)
    yield f'--config.model.remat="({words})" (computes the blocks twice)'
  fewer = now.samples_each(2 * now.accumulate)
  if fewer >= 1 and fewer == int(fewer):
    yield (
      f"--config.train.accumulate={2 * now.accumulate} (half of the samples "
      "at a time: the same step)"
    )


def _size(mesh: Mapping[str, Any], axis: str, devices: int) -> int:
  """Of a mesh axis; -1 is the rest of the devices."""
  size = mesh.get(axis, 1)
  if size != -1:
    return size
  known = 1
  for other in mesh.values():
    known *= max(1, other)
  return max(1, devices // known)


_ROWS = 8


_WIDE = 60


_TERMS = {
  "compute": "products and convolutions",
  "memory": "reads and writes of memory",
  "links": "links within a slice",
  "network": "network between slices",
}


def save(plan: Plan, path: str | os.PathLike) -> None:
  """Writes a plan as JSON; bytes, operations and seconds.

  Raises:
    UserError: the place cannot be written.
  """
  content = dataclasses.asdict(plan)
  if plan.measured:
    line = plan.measured.roofline
    content["measured"]["roofline"] |= {
      name: getattr(line, name) for name in ("bound", "bound_by", "mfu")
    }
  content["advice"] = [] if plan.fits else advice(plan)
  write_json(path, content)


def text(plan: Plan) -> str:
  """A plan to read, in lines."""
  parts = [_head(plan), _memory(plan)]
  if plan.measured:
    parts += _measured(plan, plan.measured)
  elif plan.exhausted.largest:
    parts.append(
      "Largest arrays, of each device\n"
      + _table(
        (_bytes(a.bytes), a.shape, a.op_name) for a in plan.exhausted.largest
      )
    )
  if not plan.fits:
    steps = enumerate(advice(plan), 1)
    parts.append(
      "What would help\n" + "\n".join(f"  {n}. {step}" for n, step in steps)
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
  hurried = ", in a hurry" if plan.fast else ""
  lines.append(
    f"  compiled in {plan.compile_seconds:.0f} s{hurried} ({versions}); "
    "nothing has run"
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
    f"Memory of each device: {verdict} the {_bytes(memory.limit)} there are\n"
    + _table(rows)
  )


def _parts(memory: Memory) -> Iterator[tuple[int | None, str]]:
  yield memory.arguments, "arguments: state and batch"
  yield memory.outputs, "outputs beside them"
  yield memory.temporaries, "temporaries"
  yield memory.code, "the program"


def _measured(plan: Plan, measured: Measured) -> Iterator[str]:
  each = plan.model_flops / plan.devices
  again = measured.flops / each if each else 0
  yield (
    "Operations of a step, on each device\n"
    + _table(
      [
        (_flops(each), "of the model: products and convolutions"),
        (_flops(measured.flops), f"as compiled: {again:.2f} times that"),
      ]
    )
  )
  yield _roofline(measured.roofline)
  if measured.traffic:
    yield (
      "Sent by each device in a step\n"
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
    "Largest arrays, of each device (they need not be there together)\n"
    + _table(
      (
        _bytes(t.bytes),
        f"{t.shape}" + (f" x {t.copies}" if t.copies > 1 else ""),
        _padding(t),
        _short(t.op_name),
        t.source,
      )
      for t in measured.tensors[:_ROWS]
    )
  )
  if measured.unknown_loops:
    yield (
      f"{measured.unknown_loops} loops run until something is so: they count "
      "as if they ran once"
    )


def _roofline(line: Roofline) -> str:
  rows = [
    (_seconds(seconds), _TERMS[name])
    for name, seconds in line.terms.items()
    if seconds
  ]
  return (
    f"A step takes at least {_seconds(line.bound)}, for its "
    f"{_TERMS[line.bound_by]}: at most {line.mfu:.0%} model FLOPs utilisation\n"
    + _table(rows)
  )


def _table(rows: Iterable[Sequence[str]]) -> str:
  """Columns that line up, the first to the right."""
  rows = [tuple(map(str, row)) for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = (c.ljust(w) for c, w in zip(others, widths[1:], strict=True))
    lines.append("  ".join(["", first.rjust(widths[0]), *cells]).rstrip())
  return "\n".join(lines)


def _padding(tensor: Tensor) -> str:
  """How much its layout adds, where that is much."""
  times = tensor.bytes / max(1, tensor.shape.data_bytes)
  return f"{times:.1f} times padded" if times > 1.2 else ""


def _short(name: str) -> str:
  """The end of a long name: what comes first is the same everywhere."""
  return name if len(name) <= _WIDE else "..." + name[3 - _WIDE :]


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
