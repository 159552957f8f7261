"""The Dockerfiles: what they name exists, and the command starts from it."""

import fnmatch
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT

IGNORED = (ROOT / ".dockerignore").read_text().split()
FILES = ["docker/Dockerfile", "launch/Dockerfile"]


def instructions(file):
  """(instruction, its arguments) of each; continued lines are joined."""
  text = (ROOT / file).read_text().replace("\\\n", " ")
  lines = [x for x in text.splitlines() if x.strip() and x.lstrip()[0] != "#"]
  return [tuple(line.split(maxsplit=1)) for line in lines]


def arguments(file, name):
  return [value for key, value in instructions(file) if key == name]


def copied(file):
  """The paths that COPY takes from the checkout."""
  sources = [shlex.split(value)[:-1] for value in arguments(file, "COPY")]
  return [path for paths in sources for path in paths]


@pytest.mark.parametrize("file", FILES)
def test_base_is_pinned_and_files_exist(file):
  (base,) = arguments(file, "FROM")
  assert re.fullmatch(r"python:3\.1[1-9](\.\d+)?-slim(-\w+)?", base)
  for path in copied(file):
    assert (ROOT / path).exists(), path
    assert not any(fnmatch.fnmatch(path, pattern) for pattern in IGNORED)
  runs = " ".join(arguments(file, "RUN"))
  for lock in re.findall(r"-r (\S+)", runs):
    assert lock in copied(file)


def test_the_demo_image_runs_as_another_user():
  keys = [key for key, _ in instructions("docker/Dockerfile")]
  assert keys.index("USER") == len(keys) - 2
  (user,) = arguments("docker/Dockerfile", "USER")
  runs = arguments("docker/Dockerfile", "RUN")
  assert int(user) and any(f"--uid {user} " in run for run in runs)


def test_default_command_is_that_of_make_demo():
  (command,) = arguments("docker/Dockerfile", "CMD")
  makefile = (ROOT / "Makefile").read_text()
  assert f"$(BIN)/{' '.join(json.loads(command))}\n" in makefile


def test_default_command_starts_from_what_is_copied(tmp_path):
  for path in copied("docker/Dockerfile"):
    source = ROOT / path
    if source.is_dir():
      shutil.copytree(source, tmp_path / path, symlinks=True)
    else:
      shutil.copy(source, tmp_path / path)
  (command,) = arguments("docker/Dockerfile", "CMD")
  words = json.loads(command)
  done = subprocess.run(
    [sys.executable, *words[1:], "--help"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert "launch.demo" in done.stdout, done.stderr
  listed = "from lumiere_jax.config_files import read_config; " + (
    "read_config('configs/demo.py:base'); import lumiere_jax; "
    "print(lumiere_jax.__file__)"
  )
  done = subprocess.run(
    [sys.executable, "-c", listed],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert str(tmp_path) in done.stdout, done.stderr


def test_what_is_large_or_private_is_left_out():
  left = [".git", ".venv", ".venv-app", "out", "lumiere_jax/__pycache__"]
  for path in left:
    names = [p.removeprefix("**/") for p in IGNORED]
    assert any(
      fnmatch.fnmatch(part, name)
      for part in pathlib.PurePath(path).parts
      for name in names
    ), path
