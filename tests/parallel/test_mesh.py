"""Training on two devices equals training on one."""

import numpy as np

from tests.conftest import run_command
from tests.training.conftest import records


def train(workdir, devices, batch_size):
  """A run in its own process: the device count is set at start-up."""
  return run_command(
    *("main", "--config=tests/training/micro.py:t2i"),
    *("--config.train.steps=3", "--config.train.eval_clips=0"),
    f"--config.train.batch_size={batch_size}",
    f"--workdir={workdir}",
    JAX_NUM_CPU_DEVICES=str(devices),
  )


def test_losses_agree_and_devices_are_counted(tmp_path):
  losses = []
  for devices in (1, 2):
    workdir = tmp_path / str(devices)
    result = train(workdir, devices, batch_size=4)
    assert result.returncode == 0, result.stderr
    assert records(workdir / "runs.jsonl")[0]["devices"] == devices
    losses.append([r["loss"] for r in records(workdir / "metrics.jsonl")])
  np.testing.assert_allclose(*losses, rtol=1e-3)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
  result = train(tmp_path / "w", 2, batch_size=3)
  assert result.returncode == 2
  assert "batch_size=3 does not divide among 2 devices" in result.stderr
  assert "Traceback" not in result.stderr
