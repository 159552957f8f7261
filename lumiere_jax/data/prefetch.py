"""Maps functions over items in threads or processes, a few results ahead.

grain's process pool does not serve: its workers obey the signals that are meant
for the trainer, and outlive a trainer that is killed.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
import itertools
import multiprocessing
import os
import signal
import threading
from typing import Any, TypeVar

T = TypeVar("T")
_make: Callable[[int], Any]  # In a worker process: the function it runs.


def map_ahead(
  pool: futures.Executor,
  function: Callable[[Any], T],
  items: Iterable,
  ahead: int,
) -> Generator[T, None, None]:
  """`pool.map` that computes up to `ahead` results at a time.

  Close it unless it is read to the end.
  """
  remaining = iter(items)
  waiting: deque[futures.Future[T]] = deque()
  try:
    while True:
      few = itertools.islice(remaining, ahead - len(waiting))
      waiting.extend(pool.submit(function, item) for item in few)
      if not waiting:
        return
      yield waiting.popleft().result()
  finally:
    for future in waiting:
      future.cancel()


def map_in_threads(
  function: Callable[[Any], T], items: Iterable, num_threads: int
) -> Generator[T, None, None]:
  """As `map_ahead`, with a pool of its own."""
  with futures.ThreadPoolExecutor(num_threads) as pool:
    yield from map_ahead(pool, function, items, 2 * num_threads)


def map_in_processes(
  make: Callable[[int], Any],
  finish: Callable[[Any], T],
  workers: int,
  ahead: int,
) -> Generator[T, None, None]:
  """Yields finish(make(0)), finish(make(1)), ... without end.

  Args:
    make: runs in the workers; it is pickled.
    finish: runs in one thread of this process.
    workers: number of processes; they end when the generator is closed.
    ahead: number of results prefetched, beyond one per worker.
  """
  pool = futures.ProcessPoolExecutor(
    workers,
    # Forking a process with threads, such as those of JAX, can deadlock.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(make,),
  )
  finisher = futures.ThreadPoolExecutor(1)
  made = map_ahead(pool, _work, itertools.count(), workers + ahead)
  last = lambda _: finish(next(made))
  try:
    yield from map_ahead(finisher, last, itertools.count(), ahead)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    finisher.shutdown(wait=False, cancel_futures=True)


def _start_worker(make: Callable[[int], Any]) -> None:
  global _make
  _make = make
  # Signals are for the trainer, which saves first and then ends its workers.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this worker when the trainer is killed."""
  if parent := multiprocessing.parent_process():
    parent.join()
  os._exit(1)


def _work(number: int) -> Any:
  return _make(number)
