"""The least time that a step can take on a chip."""

from collections.abc import Iterable
import dataclasses

from lumiere_jax.contrib.planning.collectives import Collective
from lumiere_jax.parallel.hardware import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Seconds that a step needs for each thing alone, were each at its peak.

  The step takes at least the longest of them, as if all overlapped. Latency,
  kernels that fill no unit, and links that a collective cannot use (a group
  along one axis of a torus uses a third of the links) make it longer.

  Attributes:
    compute: operations of the compiled program, over the chip's.
    memory: bytes that its kernels read and write, over the bandwidth.
    links: bytes that a chip sends within its slice, over all its links.
    network: bytes that it sends between slices, over its share of the
      network.
    model: operations that the model itself asks for, over those of all chips.
  """

  compute: float
  memory: float
  links: float
  network: float
  model: float

  @property
  def terms(self) -> dict[str, float]:
    """Name -> seconds."""
    names = ("compute", "memory", "links", "network")
    return {name: getattr(self, name) for name in names}

  @property
  def bound(self) -> float:
    """Seconds, at least, for a step."""
    return max(self.terms.values())

  @property
  def bound_by(self) -> str:
    """Which term that is."""
    return max(self.terms, key=self.terms.get)

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation if a step took no longer, in 0..1."""
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
  """The terms of a program.

  Args:
    chip: what one device can do.
    devices: how many there are.
    flops: operations of one device in a step.
    moved: bytes between one device and its memory in a step.
    collectives: of the program.
    model_flops: operations of the model in a step, of all devices together.
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
