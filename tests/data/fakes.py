"""Stand-ins for slow parts."""

import os
import time

import numpy as np

from lumiere_jax.errors import UserError


def squared(number: int) -> int:
  """What worker processes run; 3 fails."""
  if number == 3:
    raise UserError("number=3", "is not allowed", "give another")
  return number**2


def process_id(number: int) -> int:
  del number
  time.sleep(0.01)
  return os.getpid()


class FakeEncoder:
  """A text encoder of random features that records the captions it encodes."""

  def __init__(self, name="a"):
    self.identity, self.encoded = name * 64, []

  def encode(self, captions):
    self.encoded += captions
    return self.features(captions)

  def features(self, captions):
    seeds = [list((self.identity[0] + c).encode()) for c in captions]
    text = [np.random.default_rng(s).normal(size=(5, 3)) for s in seeds]
    mask = np.arange(5) < np.array([[1 + len(c) % 5] for c in captions])
    return np.stack(text).astype(np.float32), mask
