"""Trains every stage that ships, each in a process of its own.

Once the pictures' model is done, which brings the text encoder, the stages of
videos and those of super-resolution train side by side.
"""

from collections.abc import Sequence
import contextlib
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import IO

from launch.showcase import typed
from lumiere_jax.training.report import RunSummary, write_curves

STOPPED = 143  # As a shell says that SIGTERM ended a command.
FIRST = "t2i"
CHAINS = (
  (("base", FIRST), ("conditional", "base")),
  (("ssr_image", ""), ("ssr", "ssr_image")),
)
"""Stages, each with what it starts from; one chain beside the other."""
BUNDLED = ("conditional", "ssr")
_WARM = (("base", FIRST), ("conditional", "warm/base"), ("ssr_image", ""))


class Training:
  """All stages; SIGTERM lets those under way save and end."""

  def __init__(self, out: Path, flags: Sequence[str] = ()):
    """Prepares it.

    Args:
      out: folder of all runs, gone on from if it holds some.
      flags: for every stage.
    """
    self._out, self._flags = out, list(flags)
    self._running: set[subprocess.Popen] = set()
    self._stopped = False
    self._failed = 0

  def run(self, *, warm: bool = False) -> int:
    """Trains what is not done yet, then writes `bundle`.

    Args:
      warm: also compiles later stages while the first one trains.

    Returns:
      The exit code: 0, that of a stage that failed, or `STOPPED`.
    """
    self._out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: self._stop())
    if warm:
      threading.Thread(target=self._warm, daemon=True).start()
    if self._train(FIRST, ""):
      chains = [
        threading.Thread(target=self._chain, args=(chain, quiet))
        for quiet, chain in enumerate(CHAINS)
      ]
      for chain in chains:
        chain.start()
      for chain in chains:
        chain.join()
    if self._stopped or self._failed:
      return self._failed or STOPPED
    self._draw_losses()
    return subprocess.call(self._bundle_command())

  def _stop(self) -> None:
    self._stopped = True
    for process in list(self._running):
      process.terminate()

  def _chain(self, stages: Sequence[tuple[str, str]], quiet: bool) -> None:
    for stage, source in stages:
      if not self._train(stage, source, quiet=quiet):
        return

  def _train(self, stage: str, source: str, *, quiet: bool = False) -> bool:
    """Whether the stage is done, and the next may begin."""
    if self._stopped or self._failed:
      return False
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
      log = None
      if quiet:  # one bar is seen at a time, the other one is in a file
        log = stack.enter_context((self._out / f"{stage}.log").open("ab"))
      process = self._start(stage, source, stage, log)
      code = process.wait()
    self._running.discard(process)
    if code and not self._stopped:
      self._failed = code
    # Stopped by a signal, a run saves and ends well.
    done = not code and not self._stopped
    state = "done" if done else "stopped" if self._stopped else "failed"
    print(
      f"{stage}: {state} after {time.monotonic() - began:.0f} s", flush=True
    )
    return done

  def _start(
    self, stage: str, source: str, folder: str, log: IO[bytes] | None = None
  ) -> subprocess.Popen:
    command = self.command(stage, source, folder)
    if log is None:
      print(f"\n$ {typed(command[2:])}", flush=True)
    process = subprocess.Popen(command, stdout=log, stderr=log)
    self._running.add(process)
    if self._stopped:  # just now, before it was there to be told
      process.terminate()
    return process

  def command(self, stage: str, source: str, folder: str) -> list[str]:
    """That trains a stage in a folder of `out`."""
    flags = [
      f"--config=configs/shipped.py:{stage}",
      f"--workdir={self._out / folder}",
    ]
    if stage != FIRST:
      flags.append(f"--config.text.weights={self._out / FIRST}")
    if source:
      flags.append(f"--config.init_from={self._out / source}")
    return [sys.executable, "-m", "lumiere_jax.main", *flags, *self._flags]

  def _draw_losses(self) -> None:
    runs = [
      RunSummary.read(self._out / stage, name=stage)
      for stage in (FIRST, *(stage for chain in CHAINS for stage, _ in chain))
    ]
    write_curves(self._out / "losses.svg", runs)

  def _bundle_command(self) -> list[str]:
    sources = [f"--src={self._out / stage}" for stage in BUNDLED]
    return [
      *(sys.executable, "-m", "lumiere_jax.convert", "--from=workdir"),
      *("--half", *sources, f"--out={self._out / 'bundle'}"),
    ]

  def _warm(self) -> None:
    """Runs each later stage until its first line of metrics.

    What it starts from does not matter: programs are the same whatever the
    weights, and are kept in JAX's compilation cache.
    """
    while not (self._out / FIRST / "bundle" / "bundle.json").exists():
      time.sleep(0.5)
    for stage, source in _WARM:
      folder = f"warm/{stage}"
      with (self._out / f"warm-{stage}.log").open("wb") as log:
        process = self._start(stage, source, folder, log)
        metrics = self._out / folder / "metrics.jsonl"
        while process.poll() is None and not metrics.exists():
          time.sleep(0.5)
        process.terminate()  # so that it saves: the next one starts from it
        process.wait()
        self._running.discard(process)
