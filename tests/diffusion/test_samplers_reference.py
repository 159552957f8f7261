"""Samplers walk where diffusers' schedulers walked (kept in tests/references;
`make parity` asks these live, at every kind of prediction)."""

import numpy as np
import pytest

from tests.references import samplers


@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_step_is_the_one_that_diffusers_took(name):
  theirs = np.load(samplers.FOLDER / f"{name}.npy")
  ours = samplers.walk(name)
  assert ours.shape == theirs.shape == (samplers.STEPS, *samplers.SHAPE)
  scale = np.abs(theirs).max((1, 2, 3, 4, 5))
  error = (np.abs(ours - theirs).max((1, 2, 3, 4, 5)) / scale).max()
  print(f"{name}: {error:.1e}")
  assert error < 1e-4
