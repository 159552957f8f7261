"""Trains the shipped cascade; see launch/train_demo.sh.

python -m launch.train_demo [--out=out/train_demo] \
    [--budget_minutes=30] [--warm] [-- FLAG...]

Each stage trains in its own process. Flags after -- go to every stage of
`lumiere_jax.main`.
"""

from collections.abc import Sequence
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import IO

from absl import app, flags

from launch.showcase import command_line
from lumiere_jax.stages.config import FAMILIES, PARENTS
from lumiere_jax.training.run_report import RunSummary, write_curves

STOPPED = 143  # Exit code of shells after SIGTERM.
FIRST = FAMILIES["base"][0]
SHARES = {
  FIRST: 0.25,
  "base": 0.3,
  "conditional": 0.25,
  "ssr_image": 0.12,
  "ssr": 0.08,
}
"""Of the time budget."""
BUNDLED = tuple(names[-1] for names in FAMILIES.values())
_WARM = (("base", FIRST), ("conditional", "warm/base"), ("ssr_image", None))
_SPARE = 60.0  # Seconds for the last save and the bundle.


class Training:
  """All stages; on SIGTERM the running one saves and exits."""

  def __init__(self, out: Path, flags: Sequence[str] = ()):
    """Resumes the runs in `out`; `flags` go to every stage."""
    self._out, self._flags = out, list(flags)
    self._running: set[subprocess.Popen] = set()
    self._stopped = False
    self._failed = 0

  def run(self, *, warm: bool = False, budget: float | None = None) -> int:
    """Trains the unfinished stages, then writes `bundle`.

    Args:
      warm: also compiles later stages while the first one trains.
      budget: total seconds, divided by `SHARES`; None: each stage trains to
        its last step.

    Returns:
      The exit code: 0, that of a failed stage, or `STOPPED`.
    """
    self._out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: self._stop())
    if warm:
      threading.Thread(target=self._warm, daemon=True).start()
    end = None if budget is None else time.monotonic() + budget - _SPARE
    left = [stage for stage in PARENTS if not self._is_used(stage)]
    for i, stage in enumerate(left):
      share = SHARES[stage] / sum(SHARES[later] for later in left[i:])
      seconds = end and max(share * (end - time.monotonic()), 0.0)
      self._train(stage, seconds)
      if self._stopped or self._failed:
        return self._failed or STOPPED
    runs = [RunSummary.read(self._out / stage, name=stage) for stage in PARENTS]
    write_curves(self._out / "losses.svg", runs)
    return subprocess.call(self._bundle_command())

  def _is_used(self, stage: str) -> bool:
    """Whether a later stage has started from its weights or text encoder."""
    users = [x for x in PARENTS if x != FIRST and stage in (PARENTS[x], FIRST)]
    return any((self._out / x / "checkpoints").is_dir() for x in users)

  def _stop(self) -> None:
    self._stopped = True
    for process in list(self._running):
      process.terminate()

  def _train(self, stage: str, seconds: float | None) -> None:
    """Trains a stage to its last step, or for some seconds."""
    began = time.monotonic()
    process = self._start(stage, PARENTS[stage], stage)
    state = "done"
    try:
      code = process.wait(seconds)
    except subprocess.TimeoutExpired:
      process.terminate()  # it saves
      code, state = process.wait(), "saved at its share of the time"
    self._running.discard(process)
    if self._stopped:
      state = "stopped"
    elif code:
      self._failed, state = code, "failed"
    seconds = time.monotonic() - began
    print(f"{stage}: {state} after {seconds:.0f} s", flush=True)

  def _start(
    self,
    stage: str,
    source: str | None,
    folder: str,
    log: IO[bytes] | None = None,
  ) -> subprocess.Popen:
    command = self.command(stage, source, folder)
    if log is None:
      print(f"\n$ {command_line(command[2:])}", flush=True)
    process = subprocess.Popen(command, stdout=log, stderr=log)
    self._running.add(process)
    if self._stopped:  # by a signal before the process was registered
      process.terminate()
    return process

  def command(self, stage: str, source: str | None, folder: str) -> list[str]:
    """The command that trains a stage in a folder of `out`."""
    given = [
      f"--config=configs/shipped.py:{stage}",
      f"--workdir={self._out / folder}",
    ]
    if stage != FIRST:
      given.append(f"--config.text.weights={self._out / FIRST}")
    if source:
      given.append(f"--config.init_from={self._out / source}")
    return [sys.executable, "-m", "lumiere_jax.main", *given, *self._flags]

  def _bundle_command(self) -> list[str]:
    sources = [f"--src={self._out / stage}" for stage in BUNDLED]
    return [
      *(sys.executable, "-m", "lumiere_jax.convert", "--from=workdir"),
      *("--half", *sources, f"--out={self._out / 'bundle'}"),
    ]

  def _warm(self) -> None:
    """Runs each later stage until its first line of metrics.

    This fills JAX's compilation cache; programs do not depend on the weights.
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
        process.terminate()  # it saves, and the next one starts from it
        process.wait()
        self._running.discard(process)


if __name__ == "__main__":
  OUT = flags.DEFINE_string("out", "out/train_demo", "Folder of all runs.")
  BUDGET = flags.DEFINE_float(
    "budget_minutes",
    None,
    "Wall-clock minutes for all stages; without it each trains to its last "
    "step. A second run continues the stages that no other one started from.",
    lower_bound=2,
  )
  WARM = flags.DEFINE_bool(
    "warm",
    False,
    "Compiles later stages while the first one trains, to save accelerator "
    "time.",
  )
  app.run(
    lambda argv: Training(Path(OUT.value), argv[1:]).run(
      warm=WARM.value, budget=BUDGET.value and 60 * BUDGET.value
    )
  )
