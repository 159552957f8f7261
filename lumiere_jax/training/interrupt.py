"""Being told to stop."""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils

from lumiere_jax.parallel.agree import is_first


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[int], bool]]:
  """SIGTERM and Ctrl-C ask the loop to save and end; a second Ctrl-C kills.

  A notice to one of several processes stops all of them at the same step.

  Returns:
    stopped(step): whether to stop before the step of that number.
  """
  many = jax.process_count() > 1
  with _ctrl_c_as_sigterm() if many else _signals() as stopped:
    yield stopped


@contextlib.contextmanager
def _ctrl_c_as_sigterm() -> Iterator[Callable[[int], bool]]:
  """JAX listens for SIGTERM and has all processes agree on a step."""

  def ask(number: int, frame: Any) -> None:
    del number, frame
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)

  old = signal.signal(signal.SIGINT, ask)

  def stopped(step: int) -> bool:
    stop = multihost_utils.reached_preemption_sync_point(step)
    if stop and is_first():
      _say()
    return stop

  try:
    yield stopped
  finally:
    signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
  asked: list[int] = []

  def ask(number: int, frame: Any) -> None:
    del frame
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)
    _say()

  try:
    old = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: signals are somebody else's
    old = {}
  try:
    yield lambda step: bool(asked)
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def _say() -> None:
  print("\nstopping after this step; the state will be saved", file=sys.stderr)
