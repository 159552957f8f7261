"""What one side of the speed benchmark builds and the worker runs."""

from collections.abc import Callable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A network with its inputs.

  Attributes:
    forward: one pass without gradients; returns when it is done.
    train: one step: forward, MSE, backward, AdamW; returns when it is done.
      None: there is none.
    forward_flops: of one pass, matrix products and convolutions alone.
    train_flops: of one step, counted likewise.
    parameters: how many numbers the network has.
    trained: how many of them a step changes.
    output: the prediction of a pass, (b, t, h, w, c), with the present weights.
  """

  forward: Callable[[], object]
  train: Callable[[], object] | None = None
  forward_flops: int
  train_flops: int = 0
  parameters: int = 0
  trained: int = 0
  output: Callable[[], np.ndarray] | None = None
