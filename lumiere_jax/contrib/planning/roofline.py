"""A roofline model: a lower bound of the step time."""

from collections.abc import Iterable
import dataclasses

from lumiere_jax.contrib.planning.collectives import Collective
from lumiere_jax.parallel.hardware import Chip


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
    return max(self.terms, key=self.terms.get)

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation at the bound, in [0, 1]."""
    return self.model / self.bound if self.bound else 0.0


def roofline(
  chip: Chip,
  *,
  devices: int,
  flops: float,
  moved: float,
  collectives: Iterable[Collective],
  model_flops: float,
) -> Roofline:
  """The roofline of a program.

  Args:
    chip: peak figures of one device.
    devices: number of devices.
    flops: of one device per step.
    moved: bytes between one device and its memory per step.
    collectives: of the program.
    model_flops: per step, of all devices together.
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
