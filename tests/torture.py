"""Interrupts a run in many ways and compares it with an undisturbed one.

python -m tests.torture [--kills=20] [--report=docs/reliability.md]

Twenty SIGKILLs at random moments, some while a checkpoint or a bundle is
written; SIGTERM; a full disk, one that fills while saving, a read-only one;
files truncated by a power cut. After each, the newest complete checkpoint
loads, and the finished run is bit-equal to the undisturbed one. The table of
results replaces the one between markers in the report.
"""

from collections.abc import Callable
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any, NamedTuple

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
Path = pathlib.Path


class Row(NamedTuple):
  """A row of the table: what was done to a run, and the result."""

  action: str
  on_disk: str
  result: str


def main(argv: list[str]) -> None:
  """Runs all tests, prints the table, updates the report."""
  del argv
  logging.set_verbosity(logging.ERROR)
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    whole = Path(folder, "whole")
    finish(begin(whole))
    rows = [
      *kill(Path(folder, "killed"), whole),
      *terminate(Path(folder, "terminated"), whole),
      *power_cut(Path(folder, "cut"), whole),
      *full_disk(Path(folder, "small"), whole),
      *read_only(Path(folder, "readonly"), whole),
    ]
  table = format_table(rows, time.monotonic() - began)
  print(table)
  if REPORT.value:
    write_report(Path(REPORT.value), table)


def begin(workdir: Path) -> subprocess.Popen:
  """Starts or resumes the run."""
  return start(workdir, TINY, STEPS, SAVE_EVERY)


def kill(workdir: Path, whole: Path) -> list[Row]:
  """Kills one run many times, then lets it finish."""
  draw = random.Random(SEED.value)

  def some_steps(process: subprocess.Popen) -> None:
    done = lines(workdir / "metrics.jsonl") + draw.randrange(2, 6)
    logged = lambda: lines(workdir / "metrics.jsonl") >= done
    wait_until_or_end(process, logged, rest=0.01)

  def sleep(process: subprocess.Popen, seconds: float) -> None:
    if seconds == 1:
      some_steps(process)
    time.sleep(draw.uniform(0, seconds))

  def writing(process: subprocess.Popen, pattern: str) -> None:
    """Until such a file appears, or the run ends."""
    some_steps(process)
    there = lambda: {path.name for path in workdir.glob(pattern)}
    old = there()
    wait_until_or_end(process, lambda: there() - old)

  checkpoints = "checkpoints/*orbax-checkpoint-tmp*"
  ways: list[tuple[str, Callable, Any]] = [
    ("at a random moment in training", sleep, 1),
    ("while a checkpoint is written", writing, checkpoints),
    ("at a random moment of start-up", sleep, 10),
    ("while a bundle is written", writing, "bundle/.*.part"),
  ]
  rows = []
  for number in range(KILLS.value):
    name, wait, what = ways[number % len(ways)]
    starts = lines(workdir / "runs.jsonl")
    process = begin(workdir)
    wait(process, what)
    ended = "it had finished; " if process.poll() is not None else ""
    process.kill()
    process.communicate()
    rows.append(
      Row(
        f"SIGKILL {number + 1}, {name}",
        ended + state_of(workdir),
        resumed(workdir, starts),
      )
    )
  finish(begin(workdir))
  rows.append(finished(workdir, whole))
  return rows


def wait_until_or_end(
  process: subprocess.Popen, ready: Callable, rest: float = 0
) -> None:
  """Polls, by default without sleep, for states that last milliseconds."""
  deadline = time.monotonic() + 300
  while process.poll() is None:
    assert time.monotonic() < deadline
    if ready():
      return
    if rest:
      time.sleep(rest)


def state_of(workdir: Path) -> str:
  """The newest complete checkpoint and the number of unfinished files."""
  steps = whole_checkpoints(workdir)
  torn = [*workdir.glob("checkpoints/*-tmp*"), *workdir.rglob(".*.part")]
  newest = f"checkpoint {steps[-1]}" if steps else "no checkpoint"
  return newest + (f", {len(torn)} unfinished" if torn else "")


def resumed(workdir: Path, starts: int) -> str:
  """From which step the killed run had started; `starts` were before it."""
  if lines(workdir / "runs.jsonl") == starts:
    return "killed before loading"
  step = records(workdir / "runs.jsonl")[-1]["start_step"]
  return f"had started from step {step}"


def ends(workdir: Path, whole: Path) -> str:
  """Compares a finished run with the undisturbed one."""
  assert_same_runs(whole, workdir, TINY_BASE, STEPS)
  torn = [*workdir.rglob("*-tmp*"), *workdir.rglob(".*.part")]
  torn = [path for path in torn if path.parent.name != "text_cache"]
  assert not torn, f"unfinished files remain: {torn}"
  starts = [run["start_step"] for run in records(workdir / "runs.jsonl")]
  assert starts == sorted(starts)
  return f"bit-equal after {len(starts)} starts"


def finished(workdir: Path, whole: Path) -> Row:
  """The row of a run that was left to finish."""
  return Row("left to finish", state_of(workdir), ends(workdir, whole))


def terminate(workdir: Path, whole: Path) -> list[Row]:
  """SIGTERM during compilation and in training."""
  rows = []
  for name, ready in {
    "before the first step": lambda: lines(workdir / "runs.jsonl") == 1,
    "in training": lambda: lines(workdir / "metrics.jsonl") > STEPS // 3,
  }.items():
    process = begin(workdir)
    wait_until(process, ready)
    process.send_signal(signal.SIGTERM)
    finish(process)
    logged = lines(workdir / "metrics.jsonl")
    assert whole_checkpoints(workdir)[-1] == logged
    rows.append(Row(f"SIGTERM {name}", state_of(workdir), "saved, exit code 0"))
  finish(begin(workdir))
  rows.append(finished(workdir, whole))
  return rows


def power_cut(workdir: Path, whole: Path) -> list[Row]:
  """Truncates the files of the newest checkpoint after a kill."""
  process = begin(workdir)
  wait_until(process, lambda: lines(workdir / "metrics.jsonl") > STEPS // 3)
  process.kill()
  process.communicate()
  shutil.rmtree(workdir / "bundle")  # must not be needed
  newest = whole_checkpoints(workdir)[-1]
  for path in (workdir / "checkpoints" / str(newest)).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert f"checkpoint {newest} is damaged" in finish(begin(workdir))
  step = records(workdir / "runs.jsonl")[-1]["start_step"]
  assert 0 < step < newest
  return [
    Row(
      "newest checkpoint truncated",
      f"checkpoint {newest}, damaged",
      f"resumed from step {step}; {ends(workdir, whole)}",
    )
  ]


def full_disk(folder: Path, whole: Path) -> list[Row]:
  """A small disk with no space, and with too little."""
  if not mount(folder, "size=96m"):
    return [Row("full disk", "skipped: needs root to mount one", "")]
  workdir, filler = folder / "run", folder / "filler"
  rows = []
  try:
    for name, left in {"a full disk": 0, "a disk with 13 MiB left": 13}.items():
      process = begin(workdir)
      more = lines(workdir / "metrics.jsonl") + 5
      wait_until(process, lambda m=more: lines(workdir / "metrics.jsonl") > m)
      fill(filler, left * MEBI)
      error = error_of(process)
      filler.unlink()
      rows.append(Row(name, state_of(workdir), f"exit code 2: {error}"))
    finish(begin(workdir))
    state = state_of(workdir)
    rows.append(Row("finished, with space", state, ends(workdir, whole)))
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)
  return rows


def fill(path: Path, left: int) -> None:
  """Writes zeros until no more than `left` bytes are free."""
  with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
    while shutil.disk_usage(path).free > left:
      file.write(bytes(2**16))


def read_only(folder: Path, whole: Path) -> list[Row]:
  """A read-only workdir: an immediate error, and nothing changes."""
  if not mount(folder, "size=96m"):
    return [Row("read-only workdir", "skipped: needs root", "")]
  workdir = folder / "run"
  try:
    process = begin(workdir)
    wait_until(process, lambda: lines(workdir / "metrics.jsonl") > 6)
    process.kill()
    process.communicate()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    error = error_of(begin(workdir))
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    row = Row("read-only workdir", state_of(workdir), f"exit code 2: {error}")
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    finish(begin(workdir))
    state = state_of(workdir)
    return [row, Row("finished, writable", state, ends(workdir, whole))]
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(folder: Path, options: str) -> bool:
  """Mounts a file system in memory; False where that is not allowed."""
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
  return not os.geteuid() and not subprocess.run(command).returncode


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


def format_table(rows: list[Row], seconds: float) -> str:
  """Markdown."""
  kills = sum(row.action.startswith("SIGKILL") for row in rows)
  text = [
    f"{kills} SIGKILLs of one run of {STEPS} steps, saving every {SAVE_EVERY}; "
    f"{seconds / 60:.0f} minutes in all.",
    "",
    "| action | on disk | result |",
    "|---|---|---|",
    *(f"| {row.action} | {row.on_disk} | {row.result} |" for row in rows),
  ]
  return "\n".join(text)


def write_report(path: Path, table: str) -> None:
  """Replaces the table between the markers."""
  text = path.read_text()
  begins, ends_ = (text.index(mark) for mark in MARKS)
  path.write_text(f"{text[:begins]}{MARKS[0]}\n\n{table}\n\n{text[ends_:]}")


if __name__ == "__main__":
  app.run(main)
