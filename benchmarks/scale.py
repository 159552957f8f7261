"""Tables of docs/scale.md, from the plans in docs/plans and from FLOP counts.

python -m benchmarks.scale > tables.md

Reads the plans; the first table has the commands that made them. Growth with
frames and windows is counted from the traced programs, without compiling.
"""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import sys

from absl import app, flags
import jax

from benchmarks.markdown import table
from configs import base, ssr
from lumiere_jax.contrib.planning.jobs import sample_job, train_job
from lumiere_jax.diffusion.multidiffusion import window_starts
from lumiere_jax.parallel.mesh import MeshConfig, make_mesh
from lumiere_jax.training.config import Experiment

PLANS = flags.DEFINE_string("plans", "docs/plans", "Folder of plans.")
COUNTS = flags.DEFINE_bool("counts", True, "Also tables that need tracing.")
GIB = 2**30


def main(argv: list[str]) -> None:
  """Prints the tables."""
  del argv
  files = sorted(Path(PLANS.value).glob("*.json"))
  plans = {path.stem: json.loads(path.read_text()) for path in files}
  tables = [commands(plans), plan_table(plans), chips_table(plans)]
  if COUNTS.value:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    job = sample_job(of_length(ssr.FULL, 16), mesh, num_frames=16)
    windows = lambda count: tera(count * job.model_flops)  # of 16 frames
    tables += [frames_table(windows, mesh), windows_table(windows)]
  print(*tables, sep="\n\n")


def commands(plans: dict[str, dict]) -> str:
  """The command of each plan."""
  rows = []
  for name, plan in plans.items():
    about = plan["about"]
    words = [f"--config={about['config']}", f"--job={about['job']}"]
    words.append(f"--topology={plan['topology'].split()[-3]}")
    if plan["num_slices"] > 1:
      words.append(f"--num_slices={plan['num_slices']}")
    words += [f'"{w}"' if "(" in w else w for w in about["overrides"]]
    if about["job"] == "sample":
      words.append(f"--num_frames={about['clip'][0]}")
    rows.append((name, f"`{' '.join(words)}`"))
  return table(("plan", "`python -m lumiere_jax.plan --fast` and"), rows)


def plan_table(plans: dict[str, dict]) -> str:
  """Memory, compute and traffic of each plan."""
  head = (
    *("plan", "slice", "mesh (data x fsdp x space)", "videos a step"),
    *("GiB a chip, of", "model TFLOP a video", "compiled / model"),
    *("GB sent a chip", "least s a step, by", "MFU at most"),
  )
  rows = []
  for name, plan in plans.items():
    about, memory, measured = plan["about"], plan["memory"], plan["measured"]
    costs = ["does not fit", "", "", ""]
    if measured:
      bound = measured["roofline"]
      costs = [
        f"{measured['flops'] * plan['devices'] / plan['model_flops']:.2f}",
        f"{sent(plan) / 1e9:.1f}",
        f"{bound['bound']:.2f}, {bound['bound_by']}",
        f"{bound['mfu']:.0%}",
      ]
    rows.append(
      (
        name,
        plan["topology"],
        " x ".join(map(str, about["mesh"].values())),
        about["videos"],
        f"{memory['needed'] / GIB:.1f} of {memory['limit'] / GIB:.1f}",
        tera(plan["model_flops"] / about["videos"]),
        *costs,
      )
    )
  return table(head, rows)


def chips_table(plans: dict[str, dict]) -> str:
  """Training of the base by the number of v5p chips."""
  head = (
    *("chips of TPU v5p", "GiB a chip", "GB sent a chip", "least s a step"),
    "videos a chip and hour, at most",
  )
  rows = []
  for plan in sorted(plans.values(), key=lambda plan: plan["devices"]):
    about, devices = plan["about"], plan["devices"]
    kind = (about["job"], about["config"])
    if kind != ("train", "configs/base.py") or "v5p" not in plan["topology"]:
      continue
    seconds, slices = plan["measured"]["roofline"]["bound"], plan["num_slices"]
    rows.append(
      (
        f"{devices}" + (f" in {slices} slices" if slices > 1 else ""),
        f"{plan['memory']['needed'] / GIB:.1f}",
        f"{sent(plan) / 1e9:,.0f}",
        f"{seconds:.2f}",
        f"{about['videos'] / devices / seconds * 3600:,.0f}",
      )
    )
  return table(head, rows)


def frames_table(windows: Callable[[int], str], mesh: jax.sharding.Mesh) -> str:
  """Model FLOPs of base and windows by length."""
  head = (
    *("frames", "base, training, TFLOP a video", "base, a step of sampling"),
    *("windows of 16", "SSR, a step of sampling"),
  )
  rows = []
  for frames in (16, 80, 160, 320):
    experiment = of_length(base.FULL, frames)
    trained = train_job(experiment, mesh)
    sampled = sample_job(experiment, mesh, num_frames=frames)
    count = len(window_starts(frames, 16))
    flops = tera(trained.model_flops), tera(sampled.model_flops)
    rows.append((frames, *flops, count, windows(count)))
    print(rows[-1], file=sys.stderr, flush=True)
  return table(head, rows)


def windows_table(windows: Callable[[int], str]) -> str:
  """Model FLOPs of super-resolution by number of windows."""
  head = (
    *("windows of 16 frames", "frames they cover, overlap of 2"),
    *("overlap of 8", "SSR, a step of sampling"),
  )
  covered = lambda count, overlap: 16 + (16 - overlap) * (count - 1)
  return table(
    head,
    ((n, covered(n, 2), covered(n, 8), windows(n)) for n in (3, 6, 12, 20)),
  )


def of_length(experiment: Experiment, frames: int) -> Experiment:
  """The experiment with a batch of one clip of `frames` frames."""
  return dataclasses.replace(
    experiment,
    init_from="elsewhere",
    data=dataclasses.replace(experiment.data, num_frames=frames),
    train=dataclasses.replace(experiment.train, batch_size=1, accumulate=1),
  )


def sent(plan: dict) -> float:
  """Bytes that a chip sends per step."""
  return sum(traffic["sent"] for traffic in plan["measured"]["traffic"])


def tera(flops: float) -> str:
  """Formats FLOPs in TFLOP."""
  return f"{flops / 1e12:,.0f}"


if __name__ == "__main__":
  app.run(main)
