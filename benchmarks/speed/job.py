"""A workload of the speed benchmark, built by one side and run by a worker."""

from collections.abc import Callable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A network with its inputs.

  Attributes:
    forward: runs one pass without gradients, synchronously.
    train: runs one step synchronously: forward, MSE, backward, AdamW. None if
      there is none.
    forward_flops: of one pass, only matrix products and convolutions.
    train_flops: of one step, likewise.
    parameters: of the network.
    trained: how many of them a step changes.
    output: the prediction of a pass, (b, t, h, w, c), with current weights.
  """

  forward: Callable[[], object]
  train: Callable[[], object] | None = None
  forward_flops: int
  train_flops: int = 0
  parameters: int = 0
  trained: int = 0
  output: Callable[[], np.ndarray] | None = None
