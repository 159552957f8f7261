"""Two workers that alternate on the same cores."""

from collections.abc import Callable, Sequence
import contextlib
import json
from pathlib import Path
import subprocess
import tempfile
from typing import Any, Self

ROOT = Path(__file__).parents[2]
STDERR_LINES = 10


def command(python: str, side: str, threads: int) -> list[str]:
  """The command of a worker for one side."""
  module = "benchmarks.speed.worker"
  return [python, "-m", module, f"--side={side}", f"--threads={threads}"]


class Worker(contextlib.AbstractContextManager):
  """A process of `benchmarks.speed.worker`.

  Attributes:
    name: for error messages.
  """

  def __init__(self, argv: Sequence[str], name: str = "worker"):
    self.name = name
    # A file: an unread pipe would fill and block the process.
    self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
    self._process = subprocess.Popen(
      argv,
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._stderr,
      text=True,
    )

  def ask(self, do: str, **values: Any) -> dict[str, Any]:
    """Sends a command and returns the answer.

    Raises:
      RuntimeError: the command failed, or the process ended.
    """
    line = ""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      self._stderr.seek(0)
      last = "".join(self._stderr.readlines()[-STDERR_LINES:])
      raise RuntimeError(f"{self.name} ended ({code}) at {do!r}:\n{last}")
    answer = json.loads(line)
    if "error" in answer:
      raise RuntimeError(f"{self.name}, {do!r}: {answer['error']}")
    return answer

  def run(self, what: str) -> float:
    """Seconds of one 'forward' or 'train'."""
    return self.ask("run", what=what, times=1)["seconds"][0]

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    """Kills the process."""
    self._process.kill()
    with contextlib.suppress(BrokenPipeError):
      self._process.communicate()
    self._stderr.close()


def alternate(
  a: Callable[[], float], b: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
  """Seconds of each, in the order a b b a a b ..., after a warm-up of both.

  Temporary load slows both; neither is always first.

  Args:
    a: runs once and returns the seconds; see `Worker.run`.
    b: likewise.
    rounds: number of measurements of each.
  """
  seconds: tuple[list[float], list[float]] = ([], [])
  a(), b()
  for number in range(rounds):
    for which in (1, 0) if number % 2 else (0, 1):
      seconds[which].append((a, b)[which]())
  return seconds
