"""Plans a job: config and slice in, report out."""

import dataclasses
import sys

from lumiere_jax.contrib.planning import report
from lumiere_jax.contrib.planning.analysis import analyse
from lumiere_jax.contrib.planning.jobs import make_job
from lumiere_jax.contrib.planning.topology import describe
from lumiere_jax.errors import UserError, option
from lumiere_jax.parallel.mesh import make_mesh
from lumiere_jax.training.compatibility import set_auto_shift
from lumiere_jax.training.config import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
  """A job to plan.

  Attributes:
    config: file and size of the config, as given.
    overrides: of the config, as given.
    topology: of a slice.
    num_slices: number of slices.
    job: 'train' or 'sample'.
    num_frames: of sampled videos; 0: 80.
    fast: compile faster, to a slower program.
    out: JSON file; '' is none.
  """

  config: str
  topology: str
  overrides: tuple[str, ...] = ()
  num_slices: int = 1
  job: str = "train"
  num_frames: int = 0
  fast: bool = False
  out: str = ""


def plan(experiment: Experiment, request: PlanRequest) -> bool:
  """Compiles the job, prints the report and writes it as JSON.

  A stage with a parent is planned as if `init_from` were set: with frozen
  layers.

  Returns:
    Whether it fits.
  """
  if not request.topology:
    raise UserError(
      option("topology"), "is missing", "give a slice, such as v5p:4x4x4"
    )
  topology = describe(request.topology, request.num_slices)
  mesh = make_mesh(experiment.mesh, topology.devices)
  experiment = set_auto_shift(experiment)
  if experiment.parent and not experiment.init_from:
    experiment = dataclasses.replace(experiment, init_from=experiment.parent)
  print(f"counting operations of {request.job}", file=sys.stderr)
  job = make_job(request.job, experiment, mesh, request.num_frames)
  print(f"compiling for {topology}", file=sys.stderr)
  result = analyse(
    job.lower(mesh),
    topology=topology,
    model_flops=job.model_flops,
    arguments=job.arguments,
    fast=request.fast,
    about={
      "job": request.job,
      "config": request.config,
      "overrides": list(request.overrides),
      "mesh": dict(mesh.shape),
      "videos": job.videos,
      **job.about,
      "settings": dataclasses.asdict(experiment),
    },
  )
  print(report.text(result))
  if request.out:
    report.save(result, request.out)
  return result.fits
