"""Lumiere (arXiv 2401.12945) in JAX: text to video, all frames at once."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  """`lumiere_jax.Pipeline`, without JAX for those who do not ask for it."""
  if name == "Pipeline":
    from lumiere_jax.inference.pipeline import Pipeline

    return Pipeline
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
