"""The installed commands: `lumiere-train` is python -m lumiere_jax.main, etc.

`runpy` runs the module as `python -m` does, so --help and errors are the same.
"""

import runpy


def train() -> None:
  """The command lumiere-train."""
  _run("main")


def sample() -> None:
  """The command lumiere-sample."""
  _run("sample")


def evaluate() -> None:
  """The command lumiere-evaluate."""
  _run("evaluate")


def convert() -> None:
  """The command lumiere-convert."""
  _run("convert")


def prepare() -> None:
  """The command lumiere-prepare."""
  _run("prepare")


def plan() -> None:
  """The command lumiere-plan."""
  _run("plan")


def app() -> None:
  """The command lumiere-app."""
  _run("app")


def _run(module: str) -> None:
  runpy.run_module(f"lumiere_jax.{module}", run_name="__main__", alter_sys=True)
