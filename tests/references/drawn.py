"""Reproducible random weights, so that none need to be stored."""

from collections.abc import Mapping
import math

import numpy as np


def draw(
  shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
  """Random float32 tensors under PyTorch's names and in its layout.

  They depend on names, shapes and seed only. Activations keep their scale, and
  no norm, bias or kernel is 0 or 1.

  Args:
    shapes: name -> shape; matrices (out, in), convolutions (out, in, ...).
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)
  tensors = {}
  for name in sorted(shapes):
    shape = tuple(shapes[name])
    std = 0.3 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5
    is_scale = len(shape) < 2 and "norm" in name and name.endswith("weight")
    tensor = is_scale + std * rng.standard_normal(shape)
    tensors[name] = np.asarray(tensor, np.float32)
  return tensors
