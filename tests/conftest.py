"""Fixtures that several rooms share."""

import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from lumiere_jax.models.config import (
  ExecutionConfig,
  TemporalConfig,
  UNetConfig,
)
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.temporal import identity_taps
from lumiere_jax.models.unet import UNet, abstract_params
from lumiere_jax.typing import Cond

TEXT = (5, 16)


SLOW_FIRST = (
  *("test_training", "test_cli", "test_resume", "test_walkthrough"),
  *("test_if_reference", "test_cascade", "test_unet", "test_learning"),
)
"""Files that take minutes: begun last, one worker would end alone."""


def pytest_collection_modifyitems(items):
  slow = lambda item: item.path.stem not in SLOW_FIRST
  items.sort(key=slow)  # stable: the order within files stays


def small_config(**changes) -> UNetConfig:
  """A small U-Net that has every kind of block."""
  values = {
    "channels": (16, 24, 32),
    "num_res_blocks": (1, 1, 1),
    "attention": ("none", "cross", "self"),
    "text_dim": TEXT[1],
    "text_channels": 16,
    "pool_heads": 4,
    "head_dim": 8,
    "norm_groups": 4,
    "temporal": TemporalConfig(
      resample=(True, True), head_dim=8, max_distance=32
    ),
  }
  return UNetConfig(**(values | changes))


def make_cond(batch: int, frames=None, noise_level=None, seed=1) -> Cond:
  keys = jax.random.split(jax.random.key(seed), 2)
  return Cond(
    text=jax.random.normal(keys[0], (batch, *TEXT)),
    text_mask=jnp.arange(TEXT[0])[None] < jnp.full((batch, 1), 3),
    frames=frames,
    noise_level=noise_level,
  )


@functools.cache
def random_leaves(config: UNetConfig, seed: int = 0):
  """Flat parameters, every leaf random except those that start an addition at
  zero (`proj`, `cond_in`) and the identities of temporal resampling."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    kept = path.startswith("temporal_") and (
      "/proj/" in path or "_resample/" in path
    )
    if kept and leaf.ndim == 3:
      return identity_taps(None, leaf.shape)
    if kept or path.startswith("cond_in"):
      return jnp.zeros(leaf.shape)
    scale = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
    return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

  leaves = abstract_params(config)
  return {path: draw(path, leaf) for path, leaf in leaves.items()}


@functools.partial(
  jax.jit, static_argnames=("config", "execution", "bypass_temporal")
)
def apply(flat, *args, config, execution=ExecutionConfig(), **kwargs):
  params = {"params": unflatten(flat)}
  return UNet(config, execution).apply(params, *args, **kwargs)


def run(config, flat, z, cond, time=None, **kwargs):
  # Arrays of one type, whatever the test gives: one trace.
  time = np.float32(np.full(len(z), 0.4) if time is None else time)
  return np.asarray(
    apply(flat, np.asarray(z), time, cond, config=config, **kwargs)
  )


def random_params(module, rng, *inputs, scale=1.0):
  """Normal parameters of a module, in numpy."""
  leaves = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  draw = lambda leaf: np.float32(scale * rng.standard_normal(leaf.shape))
  return jax.tree.map(draw, leaves)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


replace = common.replace


ROOT = pathlib.Path(__file__).parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
  [
    *("tests.conftest", "lumiere_jax.training.loop"),
    *("lumiere_jax.inference.batch", "lumiere_jax.conversion.convert"),
  ]
)


def run_command(
  module: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess:
  """`python -m lumiere_jax.MODULE FLAGS` in a process of its own.

  Without an environment of its own, it is forked from one that has imported
  the package, which takes seconds.
  """
  name = f"lumiere_jax.{module}"
  if environment:
    return subprocess.run(
      [sys.executable, "-m", name, *flags],
      cwd=ROOT,
      env=os.environ | environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
  with tempfile.TemporaryDirectory() as folder:
    files = [pathlib.Path(folder, stream) for stream in ("out", "err")]
    process = _SERVER.Process(target=_run_module, args=(name, flags, files))
    process.start()
    process.join(300)
    process.kill()
    process.join()
    out, err = (file.read_text() for file in files)
    done = subprocess.CompletedProcess(flags, process.exitcode, out, err)
    process.close()
    return done


def _run_module(name: str, flags: tuple[str, ...], files: list) -> None:
  os.chdir(ROOT)
  for number, file in enumerate(files, 1):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
  sys.argv = [name, *flags]
  runpy.run_module(name, run_name="__main__", alter_sys=True)
