"""Being told to stop."""

from collections.abc import Callable, Iterator
import contextlib
import signal
import sys
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
  """SIGTERM and Ctrl-C ask the loop to save and end; a second Ctrl-C kills."""
  asked: list[int] = []

  def ask(number: int, frame: Any) -> None:
    del frame
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)
    print(
      "\nstopping after this step; the state will be saved", file=sys.stderr
    )

  try:
    old = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: signals are somebody else's
    old = {}
  try:
    yield lambda: bool(asked)
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
