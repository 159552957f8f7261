"""Runs of several processes: equal steps, shared checkpoints, kills."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lumiere_jax.storage.bundle import open_bundle
from tests.scale.conftest import ROOT, run_module

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


def finish(process, code=0):
  _, err = process.communicate(timeout=400)
  assert process.returncode == code, err[-4000:]
  return err


def records(workdir):
  path = pathlib.Path(workdir, "metrics.jsonl")
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def losses(workdir):
  return [(r["step"], r["loss"]) for r in records(workdir)]


def children(process):
  """Process ids of the workers that local.py started, in order."""
  path = f"/proc/{process.pid}/task/{process.pid}/children"
  return list(map(int, pathlib.Path(path).read_text().split()))


def wait_for(ready, process, seconds=300):
  end = time.monotonic() + seconds
  while not ready():
    assert process.poll() is None, process.communicate()[1][-4000:]
    assert time.monotonic() < end, "waited too long"
    time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """One process of eight devices: the reference."""
  workdir = tmp_path_factory.mktemp("whole")
  finish(launch(workdir, processes=1, devices=8, mesh=(2, 2)))
  return workdir


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
  """Two processes of four devices."""
  workdir = tmp_path_factory.mktemp("halves")
  finish(launch(workdir, processes=2, devices=4, mesh=(2, 2)))
  return workdir


def test_two_processes_of_four_devices_equal_one_of_eight(whole, halves):
  assert len(losses(whole)) == 4
  np.testing.assert_allclose(losses(halves), losses(whole), rtol=1e-6)
  weights = [open_bundle(w).load("base") for w in (whole, halves)]
  for path, leaf in weights[0].items():
    np.testing.assert_allclose(
      weights[1][path], leaf, rtol=1e-5, atol=1e-5, err_msg=path
    )
  start = json.loads((halves / "runs.jsonl").read_text().splitlines()[0])
  assert start["processes"] == 2 and start["devices"] == 8
  assert start["mesh"] == {"data": 2, "fsdp": 2, "space": 2}


def test_only_one_process_writes(halves):
  assert [step for step, _ in losses(halves)] == [1, 2, 3, 4]
  assert len((halves / "runs.jsonl").read_text().splitlines()) == 1


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
  command = [
    *(sys.executable, "-c", _IN_TWO),
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


_IN_TWO = """
import sys
from launch.local import run
sys.exit(run(sys.argv[1:], 2, 4))
"""


def saved(workdir):
  folder = pathlib.Path(workdir, "checkpoints")
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_a_killed_worker_loses_the_steps_since_the_last_save(tmp_path, whole):
  """The run resumes on another number of hosts: one instead of two."""
  run = launch(tmp_path, processes=2, devices=1, steps=400)
  wait_for(lambda: len(saved(tmp_path)) > 1, run)
  os.kill(children(run)[1], signal.SIGKILL)
  _, err = run.communicate(timeout=120)
  assert run.returncode == 128 + signal.SIGKILL, err[-4000:]
  last, reached = saved(tmp_path)[-1], records(tmp_path)[-1]["step"]
  assert reached - last <= 2 * 2 + 1  # save_every; a save may be unfinished
  err = finish(launch(tmp_path, processes=1, devices=2, steps=last + 2))
  assert f"steps {last} to {last + 2}" in err
  assert [step for step, _ in losses(tmp_path)] == list(range(1, last + 3))
  np.testing.assert_allclose(losses(tmp_path)[:4], losses(whole), rtol=1e-5)


def test_sigterm_to_one_of_two_saves_on_both(tmp_path):
  run = launch(
    tmp_path,
    processes=2,
    devices=1,
    steps=100_000,
    **{"train.save_every": 100_000},
  )
  wait_for(lambda: len(records(tmp_path)) > 2, run)
  os.kill(children(run)[1], signal.SIGTERM)
  assert "the state will be saved" in finish(run)
  reached = records(tmp_path)[-1]["step"]
  assert saved(tmp_path) == [reached]
  err = finish(launch(tmp_path, processes=2, devices=1, steps=reached + 2))
  assert f"steps {reached} to {reached + 2}" in err
  assert [s for s, _ in losses(tmp_path)] == list(range(1, reached + 3))
