"""Reports of a plan: text, JSON, and advice for jobs that do not fit."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import os

from lumiere_jax.contrib.planning.analysis import Plan, ProgramCosts, Roofline
from lumiere_jax.errors import format_message, option
from lumiere_jax.storage.atomic import write_json

_MAX_FSDP = 64
"""The widths of the full models (704 = 64 x 11) do not divide further."""


def advice(plan: Plan) -> list[str]:
  """Overrides that reduce memory, the most promising first."""
  parts = [_for_activations(plan), _for_weights(plan)]
  if plan.memory.arguments > plan.memory.limit / 2:
    parts.reverse()
  steps = [step for part in parts for step in part]
  return [*steps, f"a larger {option('topology')}"]


def _for_weights(plan: Plan) -> Iterator[str]:
  """Against the memory of weights, moments and averages."""
  train, mesh = plan.about["settings"]["train"], plan.about["mesh"]
  frozen = _trains(plan) and train["trainable"] != ".*"
  if frozen and train["frozen_dtype"] == "source":
    yield (
      f"{option('config.train.frozen_dtype', 'bfloat16')} (halves frozen "
      "weights that are float32)"
    )
  for fsdp in (4 * mesh["fsdp"], 2 * mesh["fsdp"]):
    if fsdp <= _MAX_FSDP and _divides(plan, fsdp * mesh["space"]):
      override = _mesh_override(plan, "fsdp", fsdp)
      yield f"{override} (weights and moments in {fsdp} shards)"
      break


def _for_activations(plan: Plan) -> Iterator[str]:
  """Against the memory of temporaries."""
  settings, mesh = plan.about["settings"], plan.about["mesh"]
  accumulate, samples = settings["train"]["accumulate"], 1.0
  if _trains(plan):
    levels = len(settings["model"]["channels"])
    if set(settings["execution"]["remat"] or ("none",)) - {"full"}:
      value = ", ".join(["'full'"] * levels)
      override = option("config.execution.remat", f'"({value})"')
      yield f"{override} (computes all blocks twice)"
    # That a device processes at a time.
    samples = settings["train"]["batch_size"] / accumulate
    samples *= mesh["space"] / plan.devices
    if samples >= 2 and samples % 2 == 0:
      yield (
        f"{option('config.train.accumulate', 2 * accumulate)} (half the "
        "samples at a time, the same step)"
      )
  space = 2 * mesh["space"]
  if samples <= 1 and _divides(plan, mesh["fsdp"] * space):
    override = _mesh_override(plan, "space", space)
    yield f"{override} (the rows of a sample on {space} devices)"


def _trains(plan: Plan) -> bool:
  return plan.about["job"] == "train"


def _divides(plan: Plan, devices: int) -> bool:
  """Whether slices have groups of so many; fsdp and space do not span them."""
  return plan.devices // plan.num_slices % devices == 0


def _mesh_override(plan: Plan, axis: str, size: int) -> str:
  """An override of a mesh axis, and of `data` if that is fixed."""
  fixed = plan.about["settings"]["mesh"]["data"] != -1
  data = " " + option("config.mesh.data", -1) if fixed else ""
  return option(f"config.mesh.{axis}", size) + data


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
  if plan.exhausted and plan.exhausted.largest:
    largest = plan.exhausted.largest
    rows = [(_bytes(a.bytes), a.shape, a.op_name) for a in largest]
    parts.append(_table("Largest arrays of each device", rows))
  if not plan.fits:
    steps = enumerate(advice(plan), 1)
    lines = [f"  {n}. {format_message(step)}" for n, step in steps]
    parts.append("\n".join(["To reduce memory, try", *lines]))
  return "\n\n".join(parts)


def _head(plan: Plan) -> str:
  about = plan.about
  lines = [f"{about['job']} of {about['config']}, on {plan.topology}"]
  if about["overrides"]:
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
  parts = {
    "arguments: state and batch": memory.arguments,
    "outputs": memory.outputs,
    "temporaries": memory.temporaries,
    "program code": memory.code,
  }
  return _table(
    f"Memory of each device: {verdict} the available {_bytes(memory.limit)}",
    [(_bytes(size), what) for what, size in parts.items() if size is not None],
  )


def _measured(plan: Plan, measured: ProgramCosts) -> Iterator[str]:
  model = plan.model_flops / plan.devices
  ratio = measured.flops / model if model else 0
  yield _table(
    "Operations of each device per step",
    [
      (_flops(model), "of the model: matrix products and convolutions"),
      (_flops(measured.flops), f"as compiled: {ratio:.2f} times that"),
    ],
  )
  yield _roofline(measured.roofline)
  if measured.traffic:
    where = {False: "", True: " between slices"}
    yield _table(
      "Sent by each device per step",
      (
        (
          _bytes(t.sent),
          f"{t.count} x {t.kind}{where[t.between_slices]}",
          _short(t.largest),
        )
        for t in measured.traffic
      ),
    )
  rows = []
  for t in measured.tensors[:_MAX_ROWS]:
    shape = f"{t.shape} x {t.copies}" if t.copies > 1 else str(t.shape)
    padded = t.bytes / max(1, t.shape.data_bytes)
    padding = f"padded {padded:.1f} times" if padded > 1.2 else ""
    rows.append((_bytes(t.bytes), shape, padding, _short(t.op_name), t.source))
  yield _table("Largest arrays of each device (not all live at once)", rows)
  if measured.unknown_loops:
    yield (
      f"{measured.unknown_loops} loops have an unknown trip count; they count "
      "as if run once"
    )


def _roofline(roofline: Roofline) -> str:
  return _table(
    f"A step takes at least {_seconds(roofline.bound)}, bound by "
    f"{_TERMS[roofline.bound_by]}: at most {roofline.mfu:.0%} model FLOPs "
    "utilisation",
    [(_seconds(s), _TERMS[name]) for name, s in roofline.terms.items() if s],
  )


def _table(head: str, rows: Iterable[Sequence[str]]) -> str:
  """A line above aligned columns, of which the first is right-aligned."""
  rows = list(rows)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [head]
  for first, *others in rows:
    cells = (c.ljust(w) for c, w in zip(others, widths[1:], strict=True))
    lines.append("  ".join(["", first.rjust(widths[0]), *cells]).rstrip())
  return "\n".join(lines)


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
