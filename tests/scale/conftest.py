"""Runs modules in a process with eight CPU devices."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run_module(name: str, *args: object, devices: int = 8) -> None:
  """`python -m tests.scale.NAME ARGS` with this many CPU devices."""
  environ = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
  command = [sys.executable, "-m", f"tests.scale.{name}", *map(str, args)]
  done = subprocess.run(
    command, cwd=ROOT, env=environ, capture_output=True, text=True
  )
  if done.returncode:
    pytest.fail(f"{name} failed:\n{done.stderr[-3000:]}")
