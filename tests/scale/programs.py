"""Collectives of compiled programs on a 2x2x2 mesh: python -m ... OUT.json.

Of a training step of base and super-resolution, and of a sampling step in
windows.
"""

import json
import sys

import jax

from lumiere_jax.contrib.planning.collectives import collectives
from lumiere_jax.contrib.planning.hlo import parse
from lumiere_jax.contrib.planning.jobs import PlannedJob, sample_job, train_job
from lumiere_jax.inference.windowing import Windows
from tests.conftest import replace
from tests.scale.experiments import BASE, SSR, mesh_of

FRAMES = 22
"""Of the sampled video: windows of 8 start at 0, 6, 12 and 14."""


def collectives_of(job: PlannedJob, mesh: jax.sharding.Mesh) -> list[dict]:
  module = parse(job.lower(mesh).compile().as_text())
  return [
    {"kind": c.kind, "results": [s.dims for s in c.results], "of": c.op_name}
    for c in collectives(module)
  ]


def main(out: str) -> None:
  """Saves the collectives of the three programs."""
  mesh = mesh_of(2, 2, 2)
  inflated = lambda e: replace(e, init_from="elsewhere")
  jobs = {
    "base": train_job(inflated(BASE), mesh),
    "ssr": train_job(inflated(SSR), mesh),
    "windows": sample_job(
      SSR, mesh, num_frames=FRAMES, windows=Windows(size=8)
    ),
  }
  with open(out, "w") as file:
    found = {name: collectives_of(job, mesh) for name, job in jobs.items()}
    json.dump(found, file)


if __name__ == "__main__":
  main(sys.argv[1])
