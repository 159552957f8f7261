"""Plans a job: config and slice in, report out."""

import dataclasses
import sys

from lumiere_jax.contrib.planning import report
from lumiere_jax.contrib.planning.analysis import analyse
from lumiere_jax.contrib.planning.jobs import JOBS, make_job
from lumiere_jax.contrib.planning.topology import describe
from lumiere_jax.errors import UserError, option
from lumiere_jax.options import check_values, documented, setting
from lumiere_jax.parallel.mesh import make_mesh
from lumiere_jax.storage.atomic import check_writable
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.initialization import set_auto_shift


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
  """What to plan.

  Attributes:
    config: file and size of the config, as the user named it.
    overrides: flags that changed it.
  """

  config: str
  topology: str = setting(help="TPU slice: v5p:4x4x4, v5e:16x16, v6e:8x8, ...")
  overrides: tuple[str, ...] = ()
  num_slices: int = setting(
    1, "Number of slices, joined by the data-centre network.", least=1
  )
  job: str = setting("train", f"A step of: {', '.join(JOBS)}.", choices=JOBS)
  num_frames: int = setting(
    0, "Frames of sampled videos; 0: 80, as in the paper."
  )
  fast: bool = setting(
    False, "Compile faster; the program may then be slower than planned."
  )
  out: str = setting("", "JSON file for all figures.")

  def __post_init__(self):
    check_values(self)


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
  if request.out:
    check_writable(request.out)
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
