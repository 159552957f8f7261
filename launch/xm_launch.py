"""Trains through XManager: on a TPU slice in GKE, on Vertex AI, or locally.

python -m launch.xm_launch --image=REGISTRY/lumiere:1 \
    --bucket=NAME --config=configs/base.py --workdir=/mnt/run/base \
    --resources=tpu_v5p=4x4x8 \
    --sweep=config.train.learning_rate=1e-4,3e-4 --sweep=config.seed=0,1 \
    [--dry_run] -- --config.init_from=/mnt/run/t2i

Every combination of the swept values is a work unit with its own workdir.
Arguments after `--` go to `lumiere_jax.main`. XManager builds the image from
launch/Dockerfile and pushes it to --image (--nobuild: it exists already).

XManager 0.8.5 does not support TPUs newer than v3 on GKE or Vertex AI, so TPUs
use our own executor, which applies launch/gke.yaml.
"""

from collections.abc import Sequence
import itertools
from pathlib import Path
import subprocess

from absl import app, flags
from xmanager import xm, xm_local
from xmanager.xm import utils
from xmanager.xm_local import registry

CONFIG = flags.DEFINE_string(
  "config", "configs/base.py", "As for lumiere_jax.main."
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the runs in the container: in /mnt/run for gke, in /gcs/BUCKET "
  "for vertex. Swept runs have a subfolder each.",
)
BUCKET = flags.DEFINE_string(
  "bucket", None, "Bucket to mount as /mnt/run, for gke."
)
IMAGE = flags.DEFINE_string(
  "image", None, "Container image: REGISTRY/NAME:TAG."
)
BUILD = flags.DEFINE_bool("build", True, "Build the image and push it.")
EXECUTOR = flags.DEFINE_enum(
  "executor",
  "gke",
  ["gke", "vertex", "local"],
  "Where to run: a TPU slice in GKE, Vertex AI (GPUs), local docker.",
)
RESOURCES = flags.DEFINE_multi_string(
  "resources",
  [],
  "NAME=QUANTITY in XManager's names: tpu_v5p=4x4x8, a100=8, ram=64e9.",
)
SWEEP = flags.DEFINE_multi_string(
  "sweep", [], "FLAG=VALUE,VALUE...: all combinations run."
)
TITLE = flags.DEFINE_string("title", "lumiere", "Name of the experiment.")
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print the package and every job, start nothing."
)

ROOT = Path(__file__).resolve().parents[1]
GKE_NAMES = {
  xm.ResourceType.TPU_V4: "tpu-v4-podslice",
  xm.ResourceType.TPU_V5E: "tpu-v5-lite-podslice",
  xm.ResourceType.TPU_V5P: "tpu-v5p-slice",
  xm.ResourceType.TPU_V6E: "tpu-v6e-slice",
}
"""Values of the GKE label gke-tpu-accelerator."""
PLACES = {"gke": "/mnt/run/", "vertex": "/gcs/", "local": "/"}
"""Prefixes of persistent workdirs, by executor."""


class TpuSlice(xm_local.Kubernetes):
  """Runs a job on a TPU slice in GKE, with launch/gke.sh."""

  def __attrs_post_init__(self):
    registry.register(TpuSlice, launch=_launch_slices)


def main(argv: list[str]) -> None:
  """Launches the experiment of the flags, or prints it."""
  if not WORKDIR.value or not IMAGE.value:
    raise app.UsageError("--workdir and --image must be given")
  check_workdir(EXECUTOR.value, WORKDIR.value, BUCKET.value)
  executor = make_executor(EXECUTOR.value, RESOURCES.value, WORKDIR.value)
  packaged = package(executor, IMAGE.value, build=BUILD.value)
  units = work_units(CONFIG.value, WORKDIR.value, SWEEP.value, argv[1:])
  if DRY_RUN.value:
    show(packaged, executor, units)
    return
  with xm_local.create_experiment(TITLE.value) as experiment:
    [executable] = experiment.package([packaged])
    for arguments in units.values():
      experiment.add(xm.Job(executable, executor, name="train", args=arguments))


def check_workdir(kind: str, workdir: str, bucket: str | None) -> None:
  """Raises app.UsageError if the runs would be lost with the container."""
  if not workdir.startswith(PLACES[kind]):
    raise app.UsageError(
      f"--workdir={workdir} must be a folder in {PLACES[kind]} for "
      f"--executor={kind}"
    )
  if kind == "gke" and not bucket:
    raise app.UsageError(
      "--bucket must be given for --executor=gke; it is mounted as /mnt/run"
    )


def make_executor(
  kind: str, resources: Sequence[str], workdir: str
) -> xm.Executor:
  """The executor `kind` with its resources; local docker mounts `workdir`."""
  quantities = dict(_split("--resources", resource) for resource in resources)
  try:
    requirements = xm.JobRequirements(**quantities)
  except (KeyError, ValueError, xm.InvalidTpuTopologyError) as error:
    raise app.UsageError(f"--resources: {error.args[0]}") from error
  accelerator = requirements.accelerator
  if kind == "gke" and accelerator not in GKE_NAMES:
    known = ", ".join(name.name.lower() for name in GKE_NAMES)
    raise app.UsageError(
      f"--resources must hold one of {known} for --executor=gke, e.g. "
      "tpu_v5p=4x4x8"
    )
  if kind != "gke" and accelerator in GKE_NAMES:
    raise app.UsageError(
      f"--executor={kind} has no {accelerator.name.lower()}; use gke"
    )
  if kind == "local":
    shared = xm_local.DockerOptions(volumes={workdir: workdir})
    return xm_local.Local(requirements=requirements, docker_options=shared)
  classes = {"gke": TpuSlice, "vertex": xm_local.Vertex}
  return classes[kind](requirements=requirements)


def package(
  executor: xm.Executor, image: str, *, build: bool
) -> xm.Packageable:
  """The image, built from launch/Dockerfile unless it exists."""
  spec = executor.Spec()
  if not build:
    return xm.container(spec, image_path=image)
  if not isinstance(executor, xm_local.Local):
    spec.push_image_tag = image
  return xm.dockerfile_container(
    spec, path=str(ROOT), dockerfile=str(ROOT / "launch/Dockerfile")
  )


def work_units(
  config: str, workdir: str, sweep: Sequence[str], others: Sequence[str]
) -> dict[str, list[str]]:
  """Name of each combination of the swept values -> arguments of the trainer.

  Those of a sweep ("FLAG=VALUE,VALUE..." each) have subfolders of `workdir`.
  """
  swept = [_split("--sweep", text) for text in sweep]
  choices = [[(flag, v) for v in values.split(",")] for flag, values in swept]
  units = {}
  for chosen in itertools.product(*choices):
    name = ",".join(f"{f.removeprefix('config.')}={v}" for f, v in chosen)
    name = name.replace("/", "_")
    units[name] = [
      f"--config={config}",
      *others,
      *(f"--{flag}={value}" for flag, value in chosen),
      f"--workdir={workdir.rstrip('/')}/{name}".rstrip("/"),
    ]
  return units


def show(
  packaged: xm.Packageable, executor: xm.Executor, units: dict[str, list[str]]
) -> None:
  """Prints the package and all work units."""
  print(f"package: {packaged.executable_spec}")
  print(f"  for {packaged.executor_spec}")
  for number, (name, arguments) in enumerate(units.items(), 1):
    print(f"job {number} {name}".rstrip())
    print(f"  on {executor.requirements}")
    command = ["python", "-m", "lumiere_jax.main", *arguments]
    if isinstance(executor, TpuSlice):
      command = slice_command(executor, str(number), IMAGE.value, arguments)
    print(f"  $ {' '.join(command)}")


def slice_command(
  executor: TpuSlice, name: str, image: str, arguments: Sequence[str]
) -> list[str]:
  """The command that starts a work unit on its slice."""
  requirements = executor.requirements
  return [
    str(ROOT / "launch/gke.sh"),
    f"--name=lumiere-{name.replace('_', '-')}",
    f"--image={image}",
    f"--bucket={BUCKET.value}",
    f"--accelerator={GKE_NAMES[requirements.accelerator]}",
    f"--topology={requirements.topology.name}",
    "--",
    *arguments,
  ]


async def _launch_slices(unit, job_group: xm.JobGroup) -> list:
  """Called by XManager for the jobs of a work unit."""
  ours = lambda job: isinstance(job.executor, TpuSlice)
  for job in xm.job_operators.collect_jobs_by_filter(job_group, ours):
    arguments = xm.merge_args(job.executable.args, job.args)
    command = slice_command(
      job.executor,
      unit.experiment_unit_name,
      job.executable.image_path,
      arguments.to_list(utils.ARGV_ESCAPER),
    )
    subprocess.run(command, check=True)
  return []


def _split(flag: str, text: str) -> tuple[str, str]:
  name, equals, value = text.partition("=")
  if not name or not equals or not value:
    raise app.UsageError(f"{flag}={text} is not NAME=VALUE")
  return name.lstrip("-"), value


if __name__ == "__main__":
  app.run(main)
