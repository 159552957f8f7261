"""Fakes of gcloud, kubectl, sbatch and other tools, for the shell launchers."""

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMES = (
  *("gcloud", "kubectl", "sbatch", "srun", "scontrol", "git"),
  *("gcsfuse", "findmnt", "sudo", "curl", "lsb_release"),
)
GKE = ("--image=r/n:1", "--bucket=b-1")
IN_BUCKET = "-- --workdir=/mnt/run/x"
MOUNTED = [
  *("gcsfuse", "--implicit-dirs", "--rename-dir-limit=200000"),
  *("--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"),
  "b-1",
]
"""The call of gcsfuse, without its folder."""


class FakeTools:
  """Runs launchers with fake tools, which run a bash script."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.calls_file = folder / "calls"
    self.environ = dict(os.environ, PATH=f"{folder}/bin:{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "PYTHON"):
      self.environ.pop(name, None)
    (folder / "bin").mkdir()
    self.run_script("echo 'called in a dry run' >&2; exit 9")

  def run_script(self, script: str) -> None:
    for name in NAMES:
      program = self.folder / "bin" / name
      program.write_text(
        f'#!/bin/bash\ncd "{self.folder}"\n'
        f'printf "%q " {name} "$@" >>calls; echo >>calls\n{script}\n'
      )
      program.chmod(0o755)

  def without(self, name: str) -> None:
    (self.folder / "bin" / name).unlink()

  def start(self, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=self.environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *command: str) -> tuple[int, str, str]:
    process = self.start(*command)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err

  @property
  def calls(self) -> list[list[str]]:
    if not self.calls_file.exists():
      return []
    return [shlex.split(x) for x in self.calls_file.read_text().splitlines()]


@pytest.fixture
def tools(tmp_path):
  return FakeTools(tmp_path)
