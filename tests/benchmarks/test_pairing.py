"""The worker with fake jobs that log, and two alternating workers."""

import functools
import importlib.metadata
import sys

import numpy as np
import pytest

from benchmarks.speed import pairing

STAND_IN = """
import os, sys, types
import numpy as np
from benchmarks.speed import worker
from benchmarks.speed.job import Job

def build(log, name):
  def note(what):
    print("libraries print")
    with open(log, "a") as file:
      print(name, what, file=file)
  return Job(
    forward=lambda: note("forward"), train=lambda: note("train"),
    forward_flops=2, train_flops=6, parameters=5, trained=3,
    output=lambda: np.arange(3),
  )

def end():
  print("out of luck", file=sys.stderr, flush=True)
  os._exit(3)

ours = types.ModuleType("benchmarks.speed.ours")
ours.JOBS = {"job": build, "end": end}
sys.modules[ours.__name__] = ours
worker.main()
"""


def start(name="worker"):
  flags = ["--side=ours", "--threads=1"]
  return pairing.Worker([sys.executable, "-c", STAND_IN, *flags], name)


@pytest.fixture(scope="module")
def worker():
  with start() as worker:
    yield worker


def build(worker, log, name="a"):
  return worker.ask("build", name="job", args={"log": str(log), "name": name})


def test_commands(worker, tmp_path):
  answer = build(worker, tmp_path / "log")
  assert answer.pop("build_seconds") > 0
  assert answer == {
    "forward_flops": 2,
    "train_flops": 6,
    "parameters": 5,
    "trained": 3,
  }
  seconds = worker.ask("run", what="train", times=3)["seconds"]
  assert len(seconds) == 3
  assert min(seconds) > 0
  assert (tmp_path / "log").read_text() == "a train\n" * 3
  worker.ask("output", to=str(tmp_path / "x.npy"))
  np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), [0, 1, 2])


def test_memory(worker):
  memory = worker.ask("memory")
  assert memory["peak_bytes"] >= memory["now_bytes"] > 1e6
  assert worker.ask("reset_memory") == {}
  assert worker.ask("memory")["peak_bytes"] <= memory["peak_bytes"]


def test_a_failed_command_is_reported_and_the_worker_continues(worker):
  with pytest.raises(RuntimeError, match="worker, 'build': KeyError: 'none'"):
    worker.ask("build", name="none", args={})
  assert worker.ask("memory")


def test_a_dead_worker_is_reported_with_its_stderr():
  with start() as worker:
    with pytest.raises(RuntimeError, match=r"(?s)ended \(3\).*out of luck"):
      worker.ask("build", name="end", args={})
    with pytest.raises(RuntimeError, match=r"ended \(3\) at 'memory'"):
      worker.ask("memory")


def test_alternate_changes_who_is_first(tmp_path):
  log = tmp_path / "log"
  with start() as a, start() as b:
    build(a, log, "a")
    build(b, log, "b")
    run = lambda worker: functools.partial(worker.run, "forward")
    of_a, of_b = pairing.alternate(run(a), run(b), 3)
  assert len(of_a) == len(of_b) == 3
  ran = [line.split()[0] for line in log.read_text().splitlines()]
  assert "".join(ran) == "ab" + "abbaab"


def test_versions(worker):
  known = worker.ask("versions", names=["numpy"])
  assert known == {"numpy": importlib.metadata.version("numpy")}


def test_the_benchmark_imports_no_tests():
  """Their package makes XLA compile fast, unoptimised programs."""
  files = sorted((pairing.ROOT / "benchmarks/speed").glob("*.py"))
  assert files
  assert not [file for file in files if "from tests" in file.read_text()]
