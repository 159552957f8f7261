"""Runs of several processes: equal steps, shared checkpoints, kills."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from lumiere_jax.storage.bundle import open_bundle
from tests.scale.conftest import ROOT, run_module
from tests.training.conftest import records
from tests.training.killing import finish, wait_until, whole_checkpoints

pytestmark = pytest.mark.scale
CONFIG = "--config=tests/scale/experiments.py:micro"


def launch(workdir, *, processes, devices, mesh=(1, 1), steps=4, **more):
  """The command line in several processes; mesh is (fsdp, space)."""
  fsdp, space = mesh
  command = [
    *(sys.executable, "launch/local.py"),
    *(f"--processes={processes}", f"--devices={devices}", "--", CONFIG),
    *(f"--config.mesh.fsdp={fsdp}", f"--config.mesh.space={space}"),
    *(f"--config.train.steps={steps}", f"--workdir={workdir}"),
    *(f"--config.{name}={value}" for name, value in more.items()),
  ]
  return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def losses(workdir):
  path = workdir / "metrics.jsonl"
  found = records(path) if path.exists() else []
  return [(r["step"], r["loss"]) for r in found]


def send(process, number):
  """Sends a signal to the second of the workers that local.py started."""
  path = f"/proc/{process.pid}/task/{process.pid}/children"
  os.kill(int(pathlib.Path(path).read_text().split()[1]), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """One process of eight devices: the reference."""
  workdir = tmp_path_factory.mktemp("whole")
  finish(launch(workdir, processes=1, devices=8, mesh=(2, 2)))
  return workdir


def test_two_processes_of_four_devices_equal_one_of_eight(whole, tmp_path):
  """And only one of them writes."""
  halves = tmp_path
  finish(launch(halves, processes=2, devices=4, mesh=(2, 2)))
  assert [step for step, _ in losses(whole)] == [1, 2, 3, 4]
  np.testing.assert_allclose(losses(halves), losses(whole), rtol=1e-6)
  weights = [open_bundle(w).load("base") for w in (whole, halves)]
  for path, leaf in weights[0].items():
    np.testing.assert_allclose(
      weights[1][path], leaf, rtol=1e-5, atol=1e-5, err_msg=path
    )
  (start,) = records(halves / "runs.jsonl")
  assert start["processes"] == 2 and start["devices"] == 8
  assert start["mesh"] == {"data": 2, "fsdp": 2, "space": 2}


def test_a_checkpoint_is_the_same_on_any_mesh_and_number_of_hosts(
  tmp_path, tmp_path_factory
):
  workdir = tmp_path / "run"
  finish(launch(workdir, processes=1, devices=8, mesh=(2, 1), steps=2))
  found = {}
  for name, devices in (("2x4x1", 8), ("1x1x1", 1), ("4x2x1", 8)):
    out = tmp_path / f"{name}.npz"
    run_module("remesh", workdir, name, out, devices=devices)
    found[name] = np.load(out)
  out = tmp_path / "two.npz"
  script = "import sys; from launch.local import run\n"
  script += "sys.exit(run(sys.argv[1:], 2, 4))"
  command = [
    *(sys.executable, "-c", script),
    *(sys.executable, "-m", "tests.scale.remesh"),
    *map(str, (workdir, "2x2x2", out)),
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-4000:]
  found["two processes"] = np.load(out)
  first = found.pop("4x2x1")
  for name, leaves in found.items():
    assert leaves.files == first.files
    for leaf in first.files:
      assert np.array_equal(leaves[leaf], first[leaf]), (name, leaf)


def test_a_killed_worker_loses_the_steps_since_the_last_save(tmp_path, whole):
  """The run resumes on another number of hosts: one instead of two."""
  run = launch(tmp_path, processes=2, devices=1, steps=400)
  wait_until(run, lambda: len(whole_checkpoints(tmp_path)) > 1)
  send(run, signal.SIGKILL)
  _, err = run.communicate(timeout=120)
  assert run.returncode == 128 + signal.SIGKILL, err[-4000:]
  last, reached = whole_checkpoints(tmp_path)[-1], losses(tmp_path)[-1][0]
  assert reached - last <= 2 * 2 + 1  # save_every; a save may be unfinished
  err = finish(launch(tmp_path, processes=1, devices=2, steps=last + 2))
  assert f"steps {last} to {last + 2}" in err
  assert [step for step, _ in losses(tmp_path)] == list(range(1, last + 3))
  np.testing.assert_allclose(losses(tmp_path)[:4], losses(whole), rtol=1e-5)


def test_sigterm_to_one_of_two_saves_on_both(tmp_path):
  rarely = {"train.save_every": 100_000}
  run = launch(tmp_path, processes=2, devices=1, steps=100_000, **rarely)
  wait_until(run, lambda: len(losses(tmp_path)) > 2)
  send(run, signal.SIGTERM)
  assert "the state will be saved" in finish(run)
  reached = losses(tmp_path)[-1][0]
  assert whole_checkpoints(tmp_path) == [reached]
  err = finish(launch(tmp_path, processes=2, devices=1, steps=reached + 2))
  assert f"steps {reached} to {reached + 2}" in err
  assert [s for s, _ in losses(tmp_path)] == list(range(1, reached + 3))
