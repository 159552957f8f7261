"""launch/gke.sh: the manifest that it fills in and applies."""

import pytest
import yaml

from tests.launch.conftest import GKE, IN_BUCKET, MOUNTED

# The fields of the JobSet and Job APIs that are used, after their path.
JOBSET = """
: apiVersion kind metadata spec
metadata: name annotations
spec: network failurePolicy replicatedJobs
spec.network: enableDNSHostnames publishNotReadyAddresses
spec.failurePolicy: maxRestarts rules
spec.failurePolicy.rules: name action onJobFailureReasons
spec.replicatedJobs: name replicas template
spec.replicatedJobs.template: spec
"""
JOB = """
: completionMode completions parallelism backoffLimit podFailurePolicy template
podFailurePolicy: rules
podFailurePolicy.rules: action onPodConditions onExitCodes
podFailurePolicy.rules.onExitCodes: containerName operator values
podFailurePolicy.rules.onPodConditions: type status
template: metadata spec
template.metadata: annotations
template.spec: restartPolicy terminationGracePeriodSeconds nodeSelector \
  tolerations containers volumes
template.spec.volumes: name csi
template.spec.volumes.csi: driver volumeAttributes
template.spec.tolerations: key operator effect
template.spec.containers: name image command args ports resources volumeMounts
template.spec.containers.ports: containerPort
template.spec.containers.volumeMounts: name mountPath
"""


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


def check_fields(value, known, path=""):
  """Checks that mappings have only the `known` keys at their path."""
  fields = dict(line.split(":") for line in known.strip().splitlines())
  if isinstance(value, list):
    for item in value:
      check_fields(item, known, path)
  elif isinstance(value, dict):
    if path in fields:
      assert value.keys() <= set(fields[path].split()), path
    for key, inner in value.items():
      check_fields(inner, known, f"{path}.{key}".lstrip("."))


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
