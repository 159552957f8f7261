"""Results of every section, from fake workers."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np

from benchmarks.speed import sections

SECONDS = {
  ("ours", "forward"): 1.0,
  ("ours", "train"): 3.3,
  ("peers", "forward"): 2.0,
  ("peers", "train"): 6.0,
}
COUNTS = {
  "forward_flops": 1e11,
  "train_flops": 3e11,
  "parameters": 5e6,
  "trained": 2e6,
}


class Worker(contextlib.nullcontext):
  """Takes the seconds above; MultiDiffusion multiplies them by its windows."""

  def __init__(self, side, seconds):
    super().__init__(self)
    self.name, self.seconds = side, seconds
    self.times = 1

  def ask(self, do, **values):
    if do == "output":
      np.save(values["to"], np.arange(4.0))
    if do == "memory":
      return {"peak_bytes": 2**30}
    if do != "build":
      return {}
    args = values["args"]
    if values["name"] == "denoise":
      self.times = args["windows"] * args["frames"] / 16
    if values["name"] == "image_unet":
      shapes = json.dumps([[16, 32, 3, 96, 1]])
      Path(args["folder"], "convolutions.json").write_text(shapes)
    return COUNTS

  def run(self, what):
    return self.seconds[self.name, what] * self.times


@dataclasses.dataclass(frozen=True)
class Bench(sections.Bench):
  """With fake workers."""

  seconds: dict = dataclasses.field(default_factory=lambda: SECONDS)

  def worker(self, side):
    return Worker(side, self.seconds)


def measure(name, **values):
  bench = Bench(ours="ours", peers="peers", rounds=2, **values)
  return list(sections.SECTIONS[name].measure(bench))


STARTUP = [
  {
    "name": "train, empty cache",
    "seconds": 30.0,
    "first_step_seconds": 21.0,
    "goal": 20,
  },
  {"name": "sample, empty cache", "seconds": 50.0},
  {"name": "import of main", "seconds": 2.0, "besides_jax": 1.5, "goal": 2},
]


def everything():
  """The output of `make bench`."""
  names = [name for name in sections.SECTIONS if name != "startup"]
  rows = {name: measure(name) for name in names} | {"startup": STARTUP}
  return {
    "machine": "2 cores",
    "versions": {"jax": "1", "torch": "2"},
    "sections": {
      name: {"date": "2026-01-02", "rounds": 2, "rows": rows[name]}
      for name in sections.SECTIONS
    },
  }
