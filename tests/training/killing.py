"""Training processes that can be killed, and comparison of their results."""

from collections.abc import Callable
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from lumiere_jax.storage import safetensors
from lumiere_jax.training.checkpoints import Checkpoints
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.optimizer import make_optimizer
from lumiere_jax.training.state import TrainState, init_state
from tests.training.conftest import assert_same, make_task, records

ROOT = pathlib.Path(__file__).parents[2]
CLIPS = ROOT / "lumiere_jax/data/assets/big_buck_bunny"
FRAMES = 8
TINY, MICRO = "configs/base.py:tiny", "tests/training/micro.py:base"


def start(
  workdir: pathlib.Path, config: str, steps: int, save_every: int = 3
) -> subprocess.Popen:
  """Starts training a base on real video."""
  command = [
    *(sys.executable, "-m", "lumiere_jax.main"),
    f"--config={config}",
    "--config.init_from=scratch",
    "--config.data.source=files",
    f"--config.data.path={CLIPS}",
    f"--config.data.num_frames={FRAMES}",
    f"--config.train.steps={steps}",
    f"--config.train.save_every={save_every}",
    "--config.train.eval_every=6",
    f"--workdir={workdir}",
  ]
  return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
  """Waits for a run that should succeed; returns its stderr."""
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  return errors


def lines(path: pathlib.Path) -> int:
  return len(path.read_text().splitlines()) if path.exists() else 0


def whole_checkpoints(workdir: pathlib.Path) -> list[int]:
  """Steps of the complete checkpoints."""
  names = [path.name for path in workdir.glob("checkpoints/*")]
  return sorted(int(name) for name in names if name.isdigit())


def wait_until(process: subprocess.Popen, ready: Callable[[], object]) -> None:
  """Waits until `ready`; fails if the process ends first."""
  deadline = time.monotonic() + 300
  while not ready():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.002)


def assert_same_runs(
  one: pathlib.Path, other: pathlib.Path, config: Experiment, steps: int
) -> None:
  """Checks that two finished runs are equal bit for bit.

  Compares losses and gradient norms of every step, held-out losses, the bundle
  and the state in the last checkpoint.
  """
  for name in ("metrics.jsonl", "held_out.jsonl"):
    pick = lambda r: (r["step"], r["loss"], r.get("grad_norm"))
    expected, got = ([*map(pick, records(d / name))] for d in (one, other))
    assert got == expected
  logged = [r["step"] for r in records(other / "metrics.jsonl")]
  assert logged == list(range(1, steps + 1))
  bundle = f"bundle/base-ema-{steps:08d}.safetensors"
  expected, got = (safetensors.load(folder / bundle) for folder in (one, other))
  assert got.keys() == expected.keys()
  assert_same(expected, got)
  expected, got = (restore(folder, config) for folder in (one, other))
  assert int(expected.step) == steps
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def restore(workdir: pathlib.Path, experiment: Experiment) -> TrainState:
  """The newest state of a run."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  fresh = lambda: init_state(
    make_task(experiment).init(jax.random.key(0)),
    make_optimizer(experiment.train, joint=experiment.joint),
  )
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(fresh),
  )
  checkpoints = Checkpoints(workdir, experiment.train)
  state, _ = checkpoints.restore(abstract)
  checkpoints.close()
  return state
