"""What the package itself offers."""

import pytest

import lumiere_jax
from lumiere_jax.inference.pipeline import Pipeline


def test_the_pipeline_is_at_hand():
  assert lumiere_jax.Pipeline is Pipeline
  with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
    _ = lumiere_jax.Pipelines
