"""The sections of the speed benchmark, one function each.

Both sides of a ratio alternate on the same cores within one run: absolute times
vary between machines and hours, ratios hardly.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import json
from pathlib import Path
import tempfile
from typing import Any

import numpy as np

from benchmarks.speed.pairing import Worker, alternate, command
from benchmarks.speed.ratios import Ratio, summary
from benchmarks.speed.startup import startup

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
QUICK_PEER = "lumiere_imagen"
VIDEO = {"batch": 1, "frames": 16, "side": SIDE, "seed": 0}
PICTURES = {"batch": 16, "frames": 1, "side": SIDE, "seed": 0}

GROWTH = {
  "frames": (80, 160, 320),
  "side": (16, 64),
  "batch": (4,),
  "windows": (4, 8),
}
# Largest cost ratios: 80 frames at most 5.2 times 16, MultiDiffusion 1.05 times
# its number of windows.
GROWTH_GOALS = {("frames", 80): 5.2, ("windows", 4): 4.2, ("windows", 8): 8.4}
QUICK_GROWTH = (("frames", 80), ("windows", 4))

# Of the U-Net's levels: batch, side, channels in and out, count.
CONVOLUTIONS = {
  "96 channels, 32x32": [16, 32, 96, 96, 8],
  "192 channels, 16x16": [16, 16, 192, 192, 8],
  "256 channels, 8x8": [16, 8, 256, 256, 16],
}
MATMULS = {
  "1024": {"size": 1024, "times": 8},
  "2048": {"size": 2048, "times": 2},
}
ALL_CONVOLUTIONS = "all 3x3 convolutions of the U-Net"


@dataclasses.dataclass(frozen=True)
class Bench:
  """Environments and repetitions.

  Attributes:
    ours: interpreter of our environment.
    peers: interpreter of the peers' environment.
    rounds: per pair.
    threads: per side.
    quick: only the rows that `--check` compares.
  """

  ours: str
  peers: str
  rounds: int
  threads: int = 2
  quick: bool = False

  def worker(self, side: str) -> Worker:
    """A worker process of 'ours' or 'peers'."""
    return Worker(command(getattr(self, side), side, self.threads), side)

  def alternate(
    self, a: tuple[Worker, str], b: tuple[Worker, str]
  ) -> tuple[list[float], list[float]]:
    """Seconds of two workers' alternating passes."""
    run = lambda worker, what: functools.partial(worker.run, what)
    return alternate(run(*a), run(*b), self.rounds)


def same_weights(bench: Bench) -> Iterator[Row]:
  """Our image U-Net against diffusers', with the same weights and inputs."""
  inputs = {"16 pictures": PICTURES, "a clip of 16 frames": VIDEO}
  for size in ("small", "medium"):
    for name, args in inputs.items():
      if bench.quick and args is not PICTURES:
        continue
      with tempfile.TemporaryDirectory() as folder:
        row = _same_weights(bench, size, {**args, "folder": folder})
      yield {"name": f"{size}, {name}", **row}


def _same_weights(bench: Bench, size: str, args: dict) -> Row:
  row: Row = {"ratios": {}}
  with bench.worker("ours") as ours, bench.worker("peers") as theirs:
    row |= ours.ask("build", name="image_unet", args={**args, "size": size})
    theirs.ask("build", name="diffusers_unet", args=args)
    outputs = []
    for worker in (ours, theirs):
      file = Path(args["folder"]) / f"{worker.name}.npy"
      worker.ask("output", to=str(file))
      outputs.append(np.load(file))
    error = np.abs(outputs[0] - outputs[1]).max() / outputs[1].std()
    row["difference"] = float(error)
    for what in PASSES:
      row[what], seconds = _compared(bench, ours, theirs, what)
      memory = [[peak] for peak in row[what]["peak_bytes"]]
      row["ratios"] |= {
        what: summary(*seconds, goal=1.0),
        f"{what}, memory": summary(*memory, goal=1.0),
      }
  return row


def _compared(
  bench: Bench, ours: Worker, theirs: Worker, what: str
) -> tuple[Row, tuple[list[float], list[float]]]:
  """Median seconds and peak memory of one pass; seconds of all pairs."""
  for worker in (ours, theirs):
    worker.run(what)  # compiles, and allocates the state
    worker.ask("reset_memory")
  seconds = bench.alternate((ours, what), (theirs, what))
  peaks = [worker.ask("memory")["peak_bytes"] for worker in (ours, theirs)]
  row = {"seconds": [float(np.median(s)) for s in seconds], "peak_bytes": peaks}
  return row, seconds


def same_job(bench: Bench) -> Iterator[Row]:
  """Video U-Nets of other libraries, alternating with ours; 16 frames."""
  # Two processes of ours: training would raise the memory of the forward pass.
  with bench.worker("ours") as forward, bench.worker("ours") as train:
    ours = dict(zip(PASSES, (forward, train), strict=True))
    for worker in ours.values():
      args = {**VIDEO, "size": "small"}
      counts = worker.ask("build", name="stunet", args=args)
    for peer in (QUICK_PEER,) if bench.quick else VIDEO_PEERS:
      yield {"name": peer, **_same_job(bench, ours, counts, peer)}


def _same_job(
  bench: Bench, ours: dict[str, Worker], counts: Row, peer: str
) -> Row:
  row: Row = {"ours": counts, "ratios": {}}
  with bench.worker("peers") as theirs:
    row["theirs"] = theirs.ask("build", name=peer, args=VIDEO)
    for what, worker in ours.items():
      row[what], seconds = _compared(bench, worker, theirs, what)
      row["ratios"][f"{what}, GFLOP/s"] = faster(row, what, seconds)
  turns = [(ours[what], what) for what in reversed(PASSES)]
  seconds = bench.alternate(*turns)
  row["ratios"]["train / forward, by FLOPs"] = train_forward(row, seconds)
  return row


def faster(row: Row, what: str, seconds: tuple) -> Ratio:
  """GFLOP/s of ours over theirs."""
  key = f"{what}_flops"
  times = row["ours"][key] / row["theirs"][key]
  return summary(*reversed(seconds), times=times, goal=1.1, better="higher")


def train_forward(row: Row, seconds: tuple) -> Ratio:
  """Seconds of our training step over a pass, divided by their FLOP ratio."""
  times = row["ours"]["forward_flops"] / row["ours"]["train_flops"]
  return summary(*seconds, times=times, goal=1.15)


def growth(bench: Bench) -> Iterator[Row]:
  """A denoising evaluation of more frames, pixels, videos or windows.

  Each alternates with one of a window of 16 frames.
  """
  base = {**VIDEO, "size": "small", "windows": 1}
  with bench.worker("ours") as one:
    one_flops = one.ask("build", name="denoise", args=base)["forward_flops"]
    for axis, numbers in GROWTH.items():
      for number in numbers:
        if bench.quick and (axis, number) not in QUICK_GROWTH:
          continue
        with bench.worker("ours") as more:
          args = {**base, axis: number}
          counts = more.ask("build", name="denoise", args=args)
          seconds = bench.alternate((more, "forward"), (one, "forward"))
        goal = GROWTH_GOALS.get((axis, number))
        yield {
          "name": f"{axis} {number}",
          "work": work(axis, number),
          "flops": counts["forward_flops"] / one_flops,
          "seconds": [float(np.median(s)) for s in seconds],
          "ratios": {"seconds": summary(*seconds, goal=goal)},
        }


def work(axis: str, number: int) -> float:
  """Pixels of an input over those of the base of `growth`."""
  base = {"frames": VIDEO["frames"], "side": SIDE}.get(axis, 1)
  return (number / base) ** (2 if axis == "side" else 1)


def limits(bench: Bench) -> Iterator[Row]:
  """Matrix products and convolutions alone, ours alternating with torch.

  Convolutions also alternate with our U-Net's forward pass on 16 images, to see
  how much of the speed of XLA's convolutions it reaches.
  """
  with tempfile.TemporaryDirectory() as folder, bench.worker("ours") as unet:
    args = {**PICTURES, "size": "medium", "folder": folder}
    counts = unet.ask("build", name="image_unet", args=args)
    shapes = {k: [v] for k, v in CONVOLUTIONS.items()}
    file = Path(folder) / "convolutions.json"
    shapes[ALL_CONVOLUTIONS] = json.loads(file.read_text())
    if not bench.quick:
      for name, args in MATMULS.items():
        yield _limit(bench, f"matmul {name}", "matmul", args, None)
    for name, shape in shapes.items():
      yield _limit(
        bench, name, "convolutions", {"shapes": shape}, (unet, counts)
      )


def _limit(
  bench: Bench,
  name: str,
  job: str,
  args: dict,
  unet: tuple[Worker, dict] | None,
) -> Row:
  args = {**args, "seed": 0}
  row: Row = {"name": name, "ratios": {}}
  with bench.worker("ours") as ours, bench.worker("peers") as theirs:
    for worker in (ours, theirs):
      flops = worker.ask("build", name=job, args=args)["forward_flops"]
    gflops = lambda seconds: flops / 1e9 / float(seconds)
    pairs = bench.alternate((ours, "forward"), (theirs, "forward"))
    row["gflops"] = [gflops(np.median(s)) for s in pairs]
    row["best_gflops"] = [gflops(min(s)) for s in pairs]
    row["ratios"]["ours / torch"] = summary(*reversed(pairs), better="higher")
    if unet:
      network, counts = unet
      pairs = bench.alternate((ours, "forward"), (network, "forward"))
      share = counts["forward_flops"] / flops
      row["ratios"]["share of the U-Net"] = summary(
        *pairs, times=share, goal=0.7, better="higher"
      )
      # Of the runs that alternate with the U-Net.
      row["gflops"][0] = gflops(np.median(pairs[0]))
      best = max(row["best_gflops"][0], gflops(min(pairs[0])))
      row["best_gflops"][0] = best
      row["unet_gflops"] = share * gflops(np.median(pairs[1]))
  return row


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the benchmark.

  Attributes:
    measure: yields rows with a unique "name", and "ratios" by name.
    rounds: per pair, such that all sections take 20 minutes on two cores.
    seconds: expected duration.
    quick_seconds: of the rows that `--check` compares; 0: none.
  """

  measure: Callable[[Bench], Iterator[Row]]
  rounds: int
  seconds: float
  quick_seconds: float = 0


SECTIONS = {
  "same_weights": Section(same_weights, 3, 240, 120),
  "same_job": Section(same_job, 3, 260, 60),
  "growth": Section(growth, 3, 280, 90),
  "limits": Section(limits, 5, 110, 90),
  "startup": Section(startup, 2, 230),
}
