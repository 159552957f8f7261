"""What the speed benchmark measures, a function a section.

Ratios are taken within one run, by turns on the same cores: seconds differ
from one machine and one hour to the next, ratios hardly.
"""

from collections.abc import Iterator
import dataclasses
import os
from pathlib import Path
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.speed.pairing import ROOT, Worker, alternate, command, ratio

Row = dict[str, Any]
SIDE = 32
PASSES = ("forward", "train")
VIDEO_PEERS = (
  "lumiere_karras",
  "lumiere_imagen",
  "imagen_unet3d",
  "diffusers_3d",
  "diffusers_motion",
  "make_a_video",
)
# The page needs packages of its own, which this environment is without.
ENTRIES = ("main", "sample", "convert", "evaluate", "prepare", "plan")


@dataclasses.dataclass(frozen=True)
class Bench:
  """Where and how often is measured.

  Attributes:
    ours: interpreter of our environment.
    peers: interpreter of the peers'.
    threads: of each side.
    rounds: of each pair.
  """

  ours: str
  peers: str
  threads: int = 2
  rounds: int = 5

  def worker(self, side: str) -> Worker:
    """A process of 'ours' or 'peers'."""
    return Worker(command(getattr(self, side), side, self.threads), side)


def same_weights(bench: Bench) -> Iterator[Row]:
  """Our image U-Net against diffusers', by the same weights and inputs."""
  for size in ("small", "medium"):
    for batch, frames in ((16, 1), (1, 16)):
      with tempfile.TemporaryDirectory() as folder:
        args = {"batch": batch, "frames": frames, "side": SIDE, "seed": 0}
        args["folder"] = folder
        yield _same_weights(bench, size, args)


def _same_weights(bench: Bench, size: str, args: dict) -> Row:
  folder = Path(args["folder"])
  row: Row = {"size": size, "batch": args["batch"], "frames": args["frames"]}
  with bench.worker("ours") as ours, bench.worker("peers") as theirs:
    row |= ours.ask("build", name="image_unet", args={**args, "size": size})
    theirs.ask("build", name="diffusers_unet", args=args)
    outputs = []
    for worker in (ours, theirs):
      file = folder / f"{worker.name}.npy"
      worker.ask("output", to=str(file))
      outputs.append(np.load(file))
    error = np.abs(outputs[0] - outputs[1]).max() / outputs[1].std()
    row["difference"] = float(error)
    for what in PASSES:
      row[what] = _compared(bench, ours, theirs, what)
  return row


def _compared(bench: Bench, ours: Worker, theirs: Worker, what: str) -> Row:
  """Seconds and peak memory of one pass."""
  for worker in (ours, theirs):
    worker.run(what)  # compiles, and fills what is kept between steps
    worker.ask("reset_memory")
  seconds = alternate(ours, theirs, what, bench.rounds)
  peaks = [worker.ask("memory")["peak_bytes"] for worker in (ours, theirs)]
  median, low, high = ratio(*seconds)
  return {
    "ours_seconds": float(np.median(seconds[0])),
    "theirs_seconds": float(np.median(seconds[1])),
    "ratio": median,
    "quartiles": [low, high],
    "peak_bytes": peaks,
  }


def same_job(bench: Bench) -> Iterator[Row]:
  """Video U-Nets of others, each by turns with ours; 16 frames."""
  args = {"batch": 1, "frames": 16, "side": SIDE, "seed": 0}
  small = {**args, "size": "small"}
  for peer in VIDEO_PEERS:
    with bench.worker("ours") as ours, bench.worker("peers") as theirs:
      counts = {
        "ours": ours.ask("build", name="stunet", args=small),
        "theirs": theirs.ask("build", name=peer, args=args),
      }
      passes = {what: _compared(bench, ours, theirs, what) for what in PASSES}
    yield {"peer": peer, **counts, **passes}


def growth(bench: Bench) -> Iterator[Row]:
  """Seconds of our Space-Time U-Net's forward pass as its input grows."""
  for axis, cases in {
    "frames": [{"frames": n} for n in (16, 80, 160, 320)],
    "side": [{"side": n} for n in (16, 32, 64)],
    "batch": [{"batch": n} for n in (1, 2, 4)],
  }.items():
    for case in cases:
      args = {"batch": 1, "frames": 16, "side": SIDE, "seed": 0, **case}
      args["size"] = "small"
      with bench.worker("ours") as ours:
        counts = ours.ask("build", name="stunet", args=args)
        ours.run("forward")
        seconds = min(ours.run("forward") for _ in range(bench.rounds))
      yield {"axis": axis, **args, "seconds": seconds, **counts}


def startup(bench: Bench) -> Iterator[Row]:
  """Seconds of whole processes, with an empty and a filled compile cache."""
  train = [
    *("-m", "lumiere_jax.main", "--config=configs/base.py:tiny"),
    *("--config.init_from=scratch", "--config.train.steps=1", "--workdir={}"),
  ]
  sample = [
    *("-m", "lumiere_jax.sample", "--model=demo", "--prompt=a red circle"),
    "--out={}.mp4",
  ]
  with tempfile.TemporaryDirectory() as folder:
    for name, words in (("train", train), ("sample", sample)):
      for state in ("cold", "cached"):
        out = f"{folder}/{name}_{state}"
        process = [word.format(out) for word in words]
        seconds = _process(bench, process, {"XDG_CACHE_HOME": folder})
        yield {"job": name, "cache": state, "seconds": seconds}
  jax = _import_seconds(bench, "jax")
  for entry in ENTRIES:
    seconds = _import_seconds(bench, f"lumiere_jax.{entry}")
    row = {"seconds": seconds, "besides_jax": seconds - jax}
    yield {"job": f"import of {entry}", **row}


def _import_seconds(bench: Bench, module: str) -> float:
  words = ["-c", f"import {module}"]
  return min(_process(bench, words, {}) for _ in range(3))


def _process(bench: Bench, words: list[str], environment: dict) -> float:
  start = time.perf_counter()
  done = subprocess.run(
    [bench.ours, *words],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"{' '.join(words)}:\n{done.stderr[-1000:]}")
  return time.perf_counter() - start


SECTIONS = {
  "same_weights": same_weights,
  "same_job": same_job,
  "growth": growth,
  "startup": startup,
}
