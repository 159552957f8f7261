"""Planning and launching with XManager's own classes and a fake kubectl."""

import pytest

pytest.importorskip("xmanager", reason="xmanager is not installed")


import json
import os
import pathlib
import subprocess
import sys

from absl import app
from xmanager import xm, xm_local
import yaml

from launch import xm_launch

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = ["config.train.learning_rate=1e-4,3e-4", "config.seed=0,1"]
IMAGE = "gcr.io/project/lumiere:1"
FLAGS = [
  *(f"--image={IMAGE}", "--workdir=/mnt/run/base"),
  "--bucket=b-1",
  *("--resources=tpu_v5p=2x2x2", *(f"--sweep={values}" for values in SWEEP)),
]

# Without docker and a cloud account.
OFFLINE = """
from absl import app
from launch import xm_launch
from xmanager.cloud import auth, docker_lib
auth.get_project_name = lambda: "project"
docker_lib.is_docker_installed = lambda: False
app.run(xm_launch.main)
"""


def run(tmp_path, *command):
  """Runs python; HOME is `tmp_path`, where the fake kubectl saves its input."""
  program = tmp_path / "bin" / "kubectl"
  program.parent.mkdir()
  program.write_text(f'#!/bin/bash\ncat >"{tmp_path}/applied-$$"\n')
  program.chmod(0o755)
  path = f"{program.parent}:{os.environ['PATH']}"
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {"HOME": str(tmp_path), "PATH": path},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_a_sweep_is_the_product_with_a_workdir_each():
  units = xm_launch.work_units("c.py", "/mnt/run/w/", SWEEP, ["--config.x=a b"])
  assert list(units) == [
    f"train.learning_rate={rate},seed={seed}"
    for rate in ("1e-4", "3e-4")
    for seed in (0, 1)
  ]
  assert units["train.learning_rate=3e-4,seed=0"] == [
    "--config=c.py",
    "--config.x=a b",
    "--config.train.learning_rate=3e-4",
    "--config.seed=0",
    "--workdir=/mnt/run/w/train.learning_rate=3e-4,seed=0",
  ]
  assert len({arguments[-1] for arguments in units.values()}) == 4
  # Without a sweep, it is the one given.
  units = xm_launch.work_units("c.py", "/mnt/run/w", [], [])
  assert units == {"": ["--config=c.py", "--workdir=/mnt/run/w"]}


def test_a_slice_is_requested_by_its_topology():
  executor = xm_launch.make_executor("gke", ["tpu_v5p=4x4x8", "ram=64e9"], "w")
  requirements = executor.requirements
  assert requirements.accelerator == xm.ResourceType.TPU_V5P
  assert requirements.topology == xm.Topology("4x4x8")
  assert requirements.task_requirements[xm.ResourceType.RAM] == 64e9


def test_the_package_is_built_from_the_repository():
  executor = xm_launch.make_executor("gke", ["tpu_v5p=2x2x1"], "w")
  built = xm_launch.package(executor, IMAGE, build=True)
  assert isinstance(built.executable_spec, xm.Dockerfile)
  assert pathlib.Path(built.executable_spec.path) == ROOT
  assert "COPY" in pathlib.Path(built.executable_spec.dockerfile).read_text()
  assert built.executor_spec == xm_local.KubernetesSpec(push_image_tag=IMAGE)
  there = xm_launch.package(executor, IMAGE, build=False)
  assert there.executable_spec == xm.Container(image_path=IMAGE)


@pytest.mark.parametrize(
  ("kind", "resources", "words"),
  [
    ("gke", ["tpu_v9=4x4"], "tpu_v9"),
    ("gke", ["tpu_v5p=4y4"], "tpu_v5p"),
    ("gke", ["a100=8"], "tpu_v5p=4x4x8"),
    ("gke", ["tpu_v5p"], "--resources=tpu_v5p is not NAME=VALUE"),
    ("vertex", ["tpu_v5p=4x4x4"], "use gke"),
  ],
  ids=str,
)
def test_invalid_resources(kind, resources, words):
  with pytest.raises(app.UsageError, match=words):
    xm_launch.make_executor(kind, resources, "w")


def test_a_dry_run_prints_all_jobs(tmp_path):
  result = run(
    *(tmp_path, "-m", "launch.xm_launch", *FLAGS, "--dry_run", "--"),
    "--config.init_from=/mnt/run/t2i",
  )
  assert result.returncode == 0, result.stderr
  out = result.stdout
  assert out.count("package: Dockerfile(") == 1
  assert f"push_image_tag='{IMAGE}'" in out
  assert out.count("tpu_v5p=xm.Topology('2x2x2')") == 4
  for number in range(1, 5):
    assert f"job {number} train.learning_rate=" in out
    assert f"--name=lumiere-{number} " in out
  assert out.count("--config.init_from=/mnt/run/t2i") == 4
  assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_work_units_become_jobsets(tmp_path):
  """XManager's own experiment, database and packaging; a fake kubectl."""
  odd = '--config.x="a" $b'
  result = run(tmp_path, "-c", OFFLINE, *FLAGS, "--nobuild", "--", odd)
  assert result.returncode == 0, result.stderr
  sets = [yaml.safe_load(p.read_text()) for p in tmp_path.glob("applied-*")]
  assert len({jobset["metadata"]["name"] for jobset in sets}) == 4
  arguments = []
  for jobset in sets:
    [job] = jobset["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["completions"] == 2  # 8 chips, 4 a host
    pod = job["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == IMAGE
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b-1"
    arguments.append([a.replace("$$", "$") for a in container["args"]])
  expected = xm_launch.work_units(
    "configs/base.py", "/mnt/run/base", SWEEP, [odd]
  )
  assert sorted(map(json.dumps, arguments)) == sorted(
    map(json.dumps, expected.values())
  )


def test_missing_flags(tmp_path):
  result = run(tmp_path, "-m", "launch.xm_launch", "--workdir=w")
  assert result.returncode == 1
  assert "--workdir and --image must be given" in result.stderr


@pytest.mark.parametrize(
  ("kind", "workdir", "words"),
  [
    ("gke", "gs://b/x", "--workdir=gs://b/x must be a folder in /mnt/run/"),
    ("gke", "/mnt/run/x", "--bucket must be given"),
    ("vertex", "/mnt/run/x", "must be a folder in /gcs/"),
    ("local", "out/x", "must be a folder in / for"),
  ],
)
def test_workdirs_that_do_not_outlive_the_container(kind, workdir, words):
  with pytest.raises(app.UsageError, match=words):
    xm_launch.check_workdir(kind, workdir, None)


def test_workdirs_that_outlive_the_container():
  xm_launch.check_workdir("gke", "/mnt/run/x", "b")
  xm_launch.check_workdir("vertex", "/gcs/b/x", None)
  xm_launch.check_workdir("local", "/data/x", None)
  local = xm_launch.make_executor("local", [], "/data/x")
  assert local.docker_options.volumes == {"/data/x": "/data/x"}
