"""A run that is killed anywhere goes on as if it had not been."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lumiere_jax.io import safetensors
from lumiere_jax.training.logs import JsonLines

ROOT = pathlib.Path(__file__).parents[2]
CLIPS = ROOT / "lumiere_jax/data/assets/big_buck_bunny"
STEPS = 14


def start(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
  """The real command on real video, in a process that can be killed."""
  command = [
    *(sys.executable, "-m", "lumiere_jax.main"),
    "--config=configs/base.py:tiny",
    "--config.init_from=scratch",
    "--config.data.source=files",
    f"--config.data.path={CLIPS}",
    "--config.data.num_frames=8",
    f"--config.train.steps={STEPS}",
    "--config.train.save_every=3",
    "--config.train.eval_every=6",
    f"--workdir={workdir}",
  ]
  compiled = {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | compiled,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen) -> None:
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def read(path: pathlib.Path) -> list[dict]:
  """Every line must parse: nothing here forgives a torn one."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def lines(path: pathlib.Path) -> int:
  return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until(process: subprocess.Popen, ready) -> None:
  deadline = time.monotonic() + 240
  while not ready():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.005)


def test_killed_twice_and_told_to_stop_once_equals_never(tmp_path):
  cache = tmp_path / "compiled"
  whole, torn = tmp_path / "whole", tmp_path / "torn"
  finish(start(whole, cache))

  process = start(torn, cache)  # killed while training, checkpoint 3 is whole
  wait_until(process, (torn / "checkpoints" / "3").is_dir)
  process.kill()
  process.communicate()
  process = start(torn, cache)  # killed as soon as a checkpoint is begun
  before = lines(torn / "metrics.jsonl")
  seen = lambda: {p.name for p in (torn / "checkpoints").glob("*")}
  old = seen()
  wait_until(
    process,
    lambda: seen() - old and lines(torn / "metrics.jsonl") != before,
  )
  process.kill()
  process.communicate()
  process = start(torn, cache)  # asked to stop: saves where it is, exits 0
  runs = lambda: lines(torn / "runs.jsonl")
  wait_until(process, lambda: runs() == 3)
  process.send_signal(signal.SIGTERM)
  finish(process)
  finish(start(torn, cache))

  starts = [run["start_step"] for run in read(torn / "runs.jsonl")]
  assert len(starts) == 4
  assert starts[0] == 0
  assert all(step > 0 for step in starts[1:])
  assert starts == sorted(starts)
  for name in ("metrics.jsonl", "held_out.jsonl"):
    pick = lambda r: (r["step"], r["loss"], r.get("grad_norm"))
    expected, got = ([pick(r) for r in read(d / name)] for d in (whole, torn))
    assert got == expected
  assert [r["step"] for r in read(torn / "metrics.jsonl")] == list(
    range(1, STEPS + 1)
  )
  weights = [
    safetensors.load(d / f"bundle/base-ema-{STEPS:08d}.safetensors")
    for d in (whole, torn)
  ]
  assert weights[0].keys() == weights[1].keys()
  for path, leaf in weights[0].items():
    np.testing.assert_array_equal(leaf, weights[1][path], err_msg=path)


def test_a_torn_last_line_is_left_out_and_a_bad_one_named(tmp_path):
  log = JsonLines(tmp_path / "metrics.jsonl")
  for step in (1, 2, 3):
    log.append({"step": step, "loss": 0.5})
  with log.path.open("a") as file:
    file.write('{"step": 4, "lo')
  assert [r["step"] for r in log.read()] == [1, 2, 3]
  log.rewind(2)
  assert [r["step"] for r in read(log.path)] == [1, 2]
  log.path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(Exception, match="line 2 is not JSON"):
    log.read()
