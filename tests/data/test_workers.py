"""Batches of worker processes, compared with those of threads."""

from collections.abc import Callable, Iterable
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from lumiere_jax.data.loader import Loader, batches
from lumiere_jax.data.prefetch import map_in_processes
from lumiere_jax.data.sources.procedural import ProceduralSource
from lumiere_jax.errors import UserError
from tests.data.fakes import process_id, squared
from tests.data.test_loader import assert_same

SOURCE = ProceduralSource(num_clips=20, num_frames=2, resolution=16)


def take(count, **options):
  made = batches(Loader(source=SOURCE, seed=3), batch_size=4, **options)
  taken = list(itertools.islice(made, count))
  made.close()
  return taken


def test_workers_make_the_batches_of_threads():
  finish = lambda batch: batch | {"finished": os.getpid()}
  made = take(5, num_workers=2, start_step=7, finish=finish)
  assert_same(made, take(5, start_step=7))
  assert {batch["finished"] for batch in made} == {os.getpid()}


def test_errors_of_a_worker_are_raised_here():
  made = map_in_processes(squared, lambda n: -n, workers=2, ahead=2)
  assert list(itertools.islice(made, 3)) == [0, -1, -4]
  with pytest.raises(UserError) as error:
    next(made)
  assert error.value.field == "number=3"
  until(lambda: not multiprocessing.active_children(), 20)


def test_closing_ends_the_workers():
  made = map_in_processes(process_id, lambda pid: pid, workers=2, ahead=2)
  seen = set()
  while len(seen) < 2:  # A worker that is still starting ends slowly.
    seen.add(next(made))
  workers = multiprocessing.active_children()
  assert {process.pid for process in workers} == seen
  made.close()
  # Without join: the pool also waits for them, and only one waiter returns.
  assert_end(seen, seconds=20)
  until(lambda: [process.exitcode for process in workers] == [0, 0], 20)


def test_a_killed_trainer_leaves_no_workers_behind():
  script = """
import time
from lumiere_jax.data.prefetch import map_in_processes
from tests.data.fakes import process_id
made = map_in_processes(process_id, lambda pid: pid, workers=2, ahead=2)
seen = set()
while len(seen) < 2:
  seen.add(next(made))
print(*seen, flush=True)
time.sleep(60)
"""
  with subprocess.Popen(
    [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
  ) as trainer:
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2
    for pid in workers:  # They ignore signals.
      os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert all(map(is_running, workers))
    trainer.kill()
  assert_end(workers, seconds=20)


def assert_end(pids: Iterable[int], seconds: float) -> None:
  until(lambda: not any(map(is_running, pids)), seconds)


def until(holds: Callable[[], bool], seconds: float) -> None:
  deadline = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < deadline
    time.sleep(0.1)


def is_running(pid: int) -> bool:
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False
