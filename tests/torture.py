"""Interrupts a run in many ways and compares it with an undisturbed one.

python -m tests.torture [--kills=20] [--report=docs/reliability.md]

Twenty SIGKILLs at random moments, some while a checkpoint or a bundle is
written; SIGTERM; a full disk, one that fills while saving, a read-only one;
files truncated by a power cut. After each, the newest complete checkpoint
loads, and the finished run is bit-equal to the undisturbed one. The table of
results replaces the one between markers in the report.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import tempfile
import time

from absl import app, flags, logging

from configs import base
from tests.conftest import replace
from tests.training.conftest import records
from tests.training.killing import (
  FRAMES,
  TINY,
  assert_same_runs,
  finish,
  lines,
  start,
  wait_until,
  whole_checkpoints,
)

KILLS = flags.DEFINE_integer("kills", 20, "SIGKILLs of one run.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")
REPORT = flags.DEFINE_string(
  "report", "", "Markdown file whose table to replace."
)

STEPS, SAVE_EVERY = 60, 2
MEBI = 2**20
TINY_BASE = replace(base.TINY, data={"num_frames": FRAMES})
MARKS = ("<!-- torture: begins -->", "<!-- torture: ends -->")
Rows = Iterator[tuple[str, str, str]]
"""What was done to a run, what was on disk, the result."""


def main(argv: list[str]) -> None:
  """Runs all tests, prints the table, updates the report."""
  del argv
  logging.set_verbosity(logging.ERROR)
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    whole = Path(folder, "whole")
    finish(begin(whole))
    rows = [
      f"| {' | '.join(row)} |"
      for test in (kill, terminate, power_cut, full_disk, read_only)
      for row in test(Path(folder, test.__name__), whole)
    ]
  minutes = (time.monotonic() - began) / 60
  kills = sum(row.startswith("| SIGKILL") for row in rows)
  head = (
    f"{kills} SIGKILLs of one run of {STEPS} steps, saving every {SAVE_EVERY}; "
    f"{minutes:.0f} minutes in all."
  )
  columns = ["| action | on disk | result |", "|---|---|---|"]
  table = "\n".join([head, "", *columns, *rows])
  print(table)
  if REPORT.value:
    path = Path(REPORT.value)
    text = path.read_text()
    first, last = (text.index(mark) for mark in MARKS)
    path.write_text(f"{text[:first]}{MARKS[0]}\n\n{table}\n\n{text[last:]}")


def begin(workdir: Path) -> subprocess.Popen:
  """Starts or resumes the run."""
  return start(workdir, TINY, STEPS, SAVE_EVERY)


def steps(workdir: Path) -> int:
  """Logged steps of the run."""
  return lines(workdir / "metrics.jsonl")


def kill(workdir: Path, whole: Path) -> Rows:
  """Kills one run many times, then lets it finish."""
  draw = random.Random(SEED.value)

  def some_steps(process: subprocess.Popen) -> None:
    done = steps(workdir) + draw.randrange(2, 6)
    wait_until_or_end(process, lambda: steps(workdir) >= done, rest=0.01)

  def in_training(process: subprocess.Popen) -> None:
    some_steps(process)
    time.sleep(draw.uniform(0, 1))

  def saving(process: subprocess.Popen) -> None:
    some_steps(process)
    wait_for_new(process, workdir, "checkpoints/*orbax-checkpoint-tmp*")

  def start_up(process: subprocess.Popen) -> None:
    del process
    time.sleep(draw.uniform(0, 10))

  def exporting(process: subprocess.Popen) -> None:
    some_steps(process)
    wait_for_new(process, workdir, "bundle/.*.part")

  ways: list[tuple[str, Callable]] = [
    ("at a random moment in training", in_training),
    ("while a checkpoint is written", saving),
    ("at a random moment of start-up", start_up),
    ("while a bundle is written", exporting),
  ]
  for number in range(KILLS.value):
    name, wait = ways[number % len(ways)]
    starts = lines(workdir / "runs.jsonl")
    process = begin(workdir)
    wait(process)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    result = "killed before loading"
    if lines(workdir / "runs.jsonl") > starts:
      result = f"had started from step {start_steps(workdir)[-1]}"
    state = ("it had finished; " if ended else "") + state_of(workdir)
    yield f"SIGKILL {number + 1}, {name}", state, result
  yield finished("left to finish", workdir, whole)


def wait_for_new(
  process: subprocess.Popen, workdir: Path, pattern: str
) -> None:
  """Waits until a new file or folder appears or the run ends."""
  old = {*workdir.glob(pattern)}
  wait_until_or_end(process, lambda: {*workdir.glob(pattern)} - old)


def wait_until_or_end(
  process: subprocess.Popen, ready: Callable, rest: float = 0
) -> None:
  """Polls, by default without sleep, for states that last milliseconds."""
  deadline = time.monotonic() + 300
  while process.poll() is None and not ready():
    assert time.monotonic() < deadline
    if rest:
      time.sleep(rest)


def state_of(workdir: Path) -> str:
  """The newest complete checkpoint and the number of unfinished files."""
  saved = whole_checkpoints(workdir)
  torn = [*workdir.glob("checkpoints/*-tmp*"), *workdir.rglob(".*.part")]
  newest = f"checkpoint {saved[-1]}" if saved else "no checkpoint"
  return newest + (f", {len(torn)} unfinished" if torn else "")


def start_steps(workdir: Path) -> list[int]:
  """The steps that the starts of the run began with."""
  return [run["start_step"] for run in records(workdir / "runs.jsonl")]


def finished(action: str, workdir: Path, whole: Path) -> tuple[str, str, str]:
  """Finishes a run and compares it with the undisturbed one."""
  finish(begin(workdir))
  return action, state_of(workdir), ends(workdir, whole)


def ends(workdir: Path, whole: Path) -> str:
  """Compares a finished run with the undisturbed one."""
  assert_same_runs(whole, workdir, TINY_BASE, STEPS)
  torn = [*workdir.rglob("*-tmp*"), *workdir.rglob(".*.part")]
  torn = [path for path in torn if path.parent.name != "text_cache"]
  assert not torn, f"unfinished files remain: {torn}"
  starts = start_steps(workdir)
  assert starts == sorted(starts)
  return f"bit-equal after {len(starts)} starts"


def terminate(workdir: Path, whole: Path) -> Rows:
  """SIGTERM during compilation and in training."""
  for name, ready in {
    "before the first step": lambda: lines(workdir / "runs.jsonl") == 1,
    "in training": lambda: steps(workdir) > STEPS // 3,
  }.items():
    process = begin(workdir)
    wait_until(process, ready)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert whole_checkpoints(workdir)[-1] == steps(workdir)
    yield f"SIGTERM {name}", state_of(workdir), "saved, exit code 0"
  yield finished("left to finish", workdir, whole)


def kill_after(workdir: Path, count: int) -> None:
  """Starts a run and kills it after more than `count` steps."""
  process = begin(workdir)
  wait_until(process, lambda: steps(workdir) > count)
  process.kill()
  process.communicate()


def power_cut(workdir: Path, whole: Path) -> Rows:
  """Truncates the files of the newest checkpoint after a kill."""
  kill_after(workdir, STEPS // 3)
  shutil.rmtree(workdir / "bundle")  # must not be needed
  newest = whole_checkpoints(workdir)[-1]
  for path in (workdir / "checkpoints" / str(newest)).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert f"checkpoint {newest} is damaged" in finish(begin(workdir))
  step = start_steps(workdir)[-1]
  assert 0 < step < newest
  result = f"resumed from step {step}; {ends(workdir, whole)}"
  yield "newest checkpoint truncated", f"checkpoint {newest}, damaged", result


def full_disk(folder: Path, whole: Path) -> Rows:
  """A small disk with no space, and with too little."""
  workdir, filler = folder / "run", folder / "filler"
  with small_disk(folder) as mounted:
    if not mounted:
      yield "full disk", "skipped: needs root to mount one", ""
      return
    for name, left in {"a full disk": 0, "a disk with 13 MiB left": 13}.items():
      process = begin(workdir)
      more = steps(workdir) + 5
      wait_until(process, lambda more=more: steps(workdir) > more)
      fill(filler, left * MEBI)
      error = error_of(process)
      filler.unlink()
      yield name, state_of(workdir), f"exit code 2: {error}"
    yield finished("finished, with space", workdir, whole)


def fill(path: Path, left: int) -> None:
  """Writes zeros until no more than `left` bytes are free."""
  with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
    while shutil.disk_usage(path).free > left:
      file.write(bytes(2**16))


def read_only(folder: Path, whole: Path) -> Rows:
  """A read-only workdir: an immediate error, and nothing changes."""
  workdir = folder / "run"
  remount = lambda mode: subprocess.run(
    ["mount", "-o", f"remount,{mode}", str(folder)], check=True
  )
  with small_disk(folder) as mounted:
    if not mounted:
      yield "read-only workdir", "skipped: needs root", ""
      return
    kill_after(workdir, 6)
    remount("ro")
    times = lambda: {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    before = times()
    error = error_of(begin(workdir))
    assert before == times()
    yield "read-only workdir", state_of(workdir), f"exit code 2: {error}"
    remount("rw")
    yield finished("finished, writable", workdir, whole)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
  """Mounts a file system in memory; False where that is not allowed."""
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
  if os.geteuid() or subprocess.run(command, check=False).returncode:
    yield False
    return
  try:
    yield True
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def error_of(process: subprocess.Popen) -> str:
  """The one-line error of a run that must exit with code 2."""
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 2, errors
  assert "Traceback" not in errors, errors
  (line,) = (x for x in errors.splitlines() if x.startswith("error: "))
  words = line.removeprefix("error: ").split()
  return " ".join(
    w.rpartition("/")[2] if w.startswith("/") else w for w in words
  )


if __name__ == "__main__":
  app.run(main)
