"""Lumiere (arXiv 2401.12945) in JAX: text to video, all frames at once."""

__version__ = "0.1.0"
