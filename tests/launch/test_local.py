"""Several processes on one machine connect, and end together."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import local

ROOT = pathlib.Path(__file__).parents[2]
NUMBER = "import os; k = int(os.environ['LUMIERE_PROCESS_ID'])\n"
JOINED = """
import sys
import jax
from jax.experimental.multihost_utils import process_allgather
from lumiere_jax.parallel import distributed
with distributed.joined():
  k = jax.process_index()
  numbers = process_allgather(jax.numpy.asarray(10 * k)).tolist()
  # In one write: Gloo writes to stdout too.
  sys.stdout.write(f"{jax.process_count()} {jax.device_count()} {numbers}\\n")
  if "fail" in sys.argv and k:
    raise RuntimeError("out of luck")
  if "fail" in sys.argv:
    process_allgather(jax.numpy.ones(3))  # never comes back
"""


def begin(program, *arguments, processes=2, devices=1, grace_s=10.0):
  """Runs a python program in several processes, from its own process."""
  command = [sys.executable, "-c", program, *arguments]
  call = f"local.run({command!r}, {processes}, {devices}, grace_s={grace_s})"
  return subprocess.Popen(
    [
      sys.executable,
      "-c",
      f"import sys\nfrom launch import local\nsys.exit({call})",
    ],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(process):
  try:
    out, err = process.communicate(timeout=100)
  finally:
    process.kill()
  gloo = ("[Gloo]", "peer ranks")  # its messages about late processes
  out = [x for x in out.splitlines() if not any(mark in x for mark in gloo)]
  return process.returncode, out, err.splitlines()


def alive(number: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{number}/stat").read_text().split(")")[1]
  except FileNotFoundError:
    return False
  return state.split()[0] != "Z"


def test_two_processes_of_two_devices_are_one_run():
  code, out, err = ended(begin(JOINED, devices=2))
  assert code == 0, err
  assert sorted(out) == ["2 4 [0, 10]", "[1] 2 4 [0, 10]"]


def test_a_failure_ends_a_process_that_waits():
  # JAX itself would take five minutes.
  code, out, err = ended(begin(JOINED, "fail", grace_s=0.2))
  assert code == 1
  assert sorted(out) == ["2 2 [0, 10]", "[1] 2 2 [0, 10]"]
  assert "[1] RuntimeError: out of luck" in err


def test_the_environment_is_that_of_each(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  environ = local.environment(1, 3, 2, 4567)
  assert environ["JAX_PLATFORMS"] == "cuda"
  assert environ["JAX_LOCAL_DEVICE_IDS"] == "2,3"
  assert environ["LUMIERE_COORDINATOR"] == "127.0.0.1:4567"
  assert environ["LUMIERE_NUM_PROCESSES"] == "3"
  monkeypatch.delenv("JAX_PLATFORMS")
  assert local.environment(1, 3, 2, 4567)["JAX_PLATFORMS"] == "cpu"


def test_lines_are_prefixed_and_the_first_failure_is_returned():
  program = NUMBER + (
    "import sys, time\n"
    "sys.stdout.write(f'a {k}\\nb'); sys.stdout.flush()\n"
    "sys.stderr.write(f'10%\\r20% {k}\\n'); sys.stderr.flush()\n"
    "time.sleep([0.6, 0, 0.3][k])\n"
    "sys.exit([7, 0, 5][k])"
  )
  code, out, err = ended(begin(program, processes=3))
  assert code == 5
  # Process 0 writes directly, so its unfinished line may contain others.
  text = "\n".join(out)
  assert "a 0" in text
  for k in (1, 2):
    assert f"[{k}] a {k}" in text
    assert f"[{k}] b" in text
    assert f"[{k}] 20% {k}" in err
  assert "20% 0" in "\n".join(err)


def test_others_are_killed_after_the_grace_period_with_descendants():
  program = NUMBER + (
    "import signal, subprocess, sys, time\n"
    "if k == 1: os.kill(os.getpid(), signal.SIGABRT)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen(['sleep', '60'])\n"
    "print(os.getpid(), child.pid, flush=True)\n"
    "time.sleep(60)"
  )
  start = time.monotonic()
  code, out, err = ended(begin(program, grace_s=1.0))
  assert code == 128 + signal.SIGABRT, err
  assert 1.0 < time.monotonic() - start < 50
  assert not any(alive(int(number)) for number in out[0].split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all_once(number):
  program = NUMBER + (
    "import signal, time\n"
    "asked = []\n"
    "for n in (signal.SIGTERM, signal.SIGINT):\n"
    "  signal.signal(n, lambda n, frame: asked.append(n))\n"
    "print('ready', flush=True)\n"
    "while not asked: time.sleep(0.01)\n"
    "time.sleep(0.3)\n"
    # One write, so that lines are not interleaved.
    "os.write(1, f'{[int(n) for n in asked]}\\n'.encode())"
  )
  process = begin(program)
  ready = {process.stdout.readline() for _ in range(2)}
  assert ready == {"ready\n", "[1] ready\n"}
  process.send_signal(number)
  code, out, err = ended(process)
  assert code == 0, err
  assert set(out) == {f"[1] [{int(number)}]", f"[{int(number)}]"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses prctl")
def test_no_process_outlives_a_killed_launcher():
  program = (
    NUMBER + "import time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)"
  )
  process = begin(program)
  lines = [process.stdout.readline() for _ in range(2)]
  numbers = [int(line.split()[-1]) for line in lines]
  assert all(map(alive, numbers))
  process.kill()
  process.communicate(timeout=20)
  end = time.monotonic() + 10
  while any(map(alive, numbers)) and time.monotonic() < end:
    time.sleep(0.02)
  assert not any(map(alive, numbers))


def test_the_script_forwards_arguments_and_the_exit_code(tmp_path):
  result = subprocess.run(
    [
      *(sys.executable, "launch/local.py", "--processes=1", "--"),
      *("--config=configs/base.py:tiny", "--config.init_from=scratch"),
      *(f"--workdir={tmp_path / 'w'}", "--process_id=1"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.splitlines() == [
    "error: --process_id=1 is too large for --num_processes=1; use 0 to 0"
  ]
  assert not (tmp_path / "w").exists()
