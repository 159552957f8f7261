"""What a task tells the cascade besides the text, and given pixels."""

from collections.abc import Callable
import dataclasses

from lumiere_jax.stages.conditioning import MaskedVideo
from lumiere_jax.typing import Clip, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingInputs:
  """What the stages are told besides the text.

  Attributes:
    given: pixels for a conditional base.
    start: (t, h, w, 3) video that the base starts from in place of noise, as
      large as the finished one (SDEdit).
    strength: in (0, 1], the schedule time of the noise that is put on it.
    low: (b, t, h, w, 3) in about [-1, 1], in place of what the base makes.
    segment: number of a part of a long video: it has noise of its own.
  """

  given: MaskedVideo | None = None
  start: Clip | None = None
  strength: float = 1.0
  low: Video | None = None
  segment: int = 0


NO_INPUTS = SamplingInputs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
  """How far sampling is.

  Attributes:
    stage: 'base' or 'ssr'.
    done: steps taken.
    total: steps of the stage.
    canvas: (b, t, h, w, 3) as it stands, noise and all.
  """

  stage: str
  done: int
  total: int
  canvas: Video


OnProgress = Callable[[Progress], None]
"""Called after every few steps; what it raises stops the sampling."""
