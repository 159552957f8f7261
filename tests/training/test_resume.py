"""A killed run resumes bit for bit.

`make torture` does the same at length: twenty kills, full and read-only disks.
"""

import signal

import pytest

from lumiere_jax.training.metric_logger import JsonLines
from tests.training.conftest import BASE, records
from tests.training.killing import (
  MICRO,
  assert_same_runs,
  finish,
  lines,
  start,
  wait_until,
)

STEPS = 14


def test_a_run_killed_twice_and_stopped_once_equals_a_whole_run(tmp_path):
  whole, torn = tmp_path / "whole", tmp_path / "torn"
  finish(start(whole, MICRO, STEPS))

  # Killed in training, after checkpoint 3.
  process = start(torn, MICRO, STEPS)
  wait_until(process, (torn / "checkpoints" / "3").is_dir)
  process.kill()
  process.communicate()
  # Killed as soon as a checkpoint is started.
  process = start(torn, MICRO, STEPS)
  before = lines(torn / "metrics.jsonl")
  seen = lambda: {p.name for p in (torn / "checkpoints").glob("*")}
  old = seen()
  wait_until(
    process, lambda: seen() - old and lines(torn / "metrics.jsonl") != before
  )
  process.kill()
  process.communicate()
  # SIGTERM: saves and exits with 0.
  process = start(torn, MICRO, STEPS)
  runs = lambda: lines(torn / "runs.jsonl")
  wait_until(process, lambda: runs() == 3)
  process.send_signal(signal.SIGTERM)
  finish(process)
  finish(start(torn, MICRO, STEPS))

  starts = [run["start_step"] for run in records(torn / "runs.jsonl")]
  assert len(starts) == 4
  assert starts == sorted(starts)
  assert starts[0] == 0 < starts[1]
  assert_same_runs(whole, torn, BASE, STEPS)


def test_a_truncated_last_line_is_ignored_and_a_bad_line_named(tmp_path):
  log = JsonLines(tmp_path / "metrics.jsonl")
  for step in (1, 2, 3):
    log.append({"step": step, "loss": 0.5})
  with log.path.open("a") as file:
    file.write('{"step": 4, "lo')
  assert [r["step"] for r in log.read()] == [1, 2, 3]
  log.rewind(2)
  assert [r["step"] for r in records(log.path)] == [1, 2]
  log.path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(Exception, match="line 2 is not JSON"):
    log.read()
