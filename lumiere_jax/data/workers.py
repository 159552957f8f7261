"""Worker processes, where Python's lock keeps threads from keeping up."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import itertools
import multiprocessing
import os
import signal
import threading
from typing import Any, TypeVar

T = TypeVar("T")
_make: Callable[[int], Any]  # In a worker: what it was started for.


def made_in_processes(
  make: Callable[[int], Any],
  finish: Callable[[Any], T],
  workers: int,
  ahead: int,
) -> Iterator[T]:
  """finish(make(0)), finish(make(1)), ... without end, made ahead.

  Args:
    make: runs in the workers, to which it is pickled.
    finish: runs in a thread of this process, one after the other.
    workers: how many processes.
    ahead: results that are finished, or waited for, beyond one per worker.

  Returns:
    A generator; closing it ends the workers.
  """
  pool = ProcessPoolExecutor(
    workers,
    # A fork of a process that has threads, as JAX has, can lock up.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_begin,
    initargs=(make,),
  )
  finisher = ThreadPoolExecutor(1)
  numbers = itertools.count()
  made, finished = deque(), deque()
  try:
    while True:
      while len(made) < workers + ahead:
        made.append(pool.submit(_work, next(numbers)))
      while len(finished) < ahead:
        result = made.popleft().result
        finished.append(finisher.submit(lambda r=result: finish(r())))
      yield finished.popleft().result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    finisher.shutdown(wait=False, cancel_futures=True)


def _begin(make: Callable[[int], Any]) -> None:
  global _make
  _make = make
  # The trainer is told to stop, and ends its workers when it has saved.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A trainer that is killed leaves no workers behind."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _work(number: int) -> Any:
  return _make(number)
