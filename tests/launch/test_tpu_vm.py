"""launch/tpu_vm.sh: its gcloud commands, and how it reacts to their results."""

import shlex
import shutil
import subprocess

import pytest

from tests.launch.conftest import ROOT


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
    *("create", "describe", "scp all", "ssh all", "ssh all", "ssh 0")
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
