"""What would make a job smaller, as overrides to try."""

from collections.abc import Iterator, Mapping
from typing import Any

from lumiere_jax.planning.analysis import Plan

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
