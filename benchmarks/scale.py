"""Tables of docs/scale.md, from the plans in docs/plans and from FLOP counts.

python -m benchmarks.scale > tables.md

Reads the plans; the first table has the commands that made them. Growth with
frames and windows is counted from the traced programs, without compiling.
"""

import dataclasses
import json
from pathlib import Path
import sys

from absl import app, flags
import jax

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
  plans = [read(path) for path in sorted(Path(PLANS.value).glob("*.json"))]
  print(commands(plans), plan_table(plans), chips_table(plans), sep="\n\n")
  if COUNTS.value:
    window = window_flops()
    print("", frames_table(window), "", windows_table(window), sep="\n")


def read(path: Path) -> dict:
  """A plan with its name."""
  return {"name": path.stem, **json.loads(path.read_text())}


def commands(plans: list[dict]) -> str:
  """The command of each plan."""
  lines = ["| plan | `python -m lumiere_jax.plan --fast` and |", "|---|---|"]
  for plan in plans:
    about = plan["about"]
    words = [f"--config={about['config']}", f"--job={about['job']}"]
    words.append(f"--topology={plan['topology'].split()[-3]}")
    if plan["num_slices"] > 1:
      words.append(f"--num_slices={plan['num_slices']}")
    words += [
      f'"{word}"' if "(" in word else word for word in about["overrides"]
    ]
    if about["job"] == "sample":
      words.append(f"--num_frames={about['clip'][0]}")
    lines.append(f"| {plan['name']} | `{' '.join(words)}` |")
  return "\n".join(lines)


def plan_table(plans: list[dict]) -> str:
  """Memory, compute and traffic of each plan."""
  lines = [
    "| plan | slice | mesh (data x fsdp x space) | videos a step | GiB a chip,"
    " of | model TFLOP a video | compiled / model | GB sent a chip | least s a"
    " step, by | MFU at most |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for plan in plans:
    about, memory = plan["about"], plan["memory"]
    mesh = " x ".join(str(size) for size in about["mesh"].values())
    cells = [
      plan["name"],
      plan["topology"],
      mesh,
      about["videos"],
      f"{memory['needed'] / GIB:.1f} of {memory['limit'] / GIB:.1f}",
      f"{plan['model_flops'] / about['videos'] / 1e12:,.0f}",
    ]
    if plan["measured"]:
      measured, line = plan["measured"], plan["measured"]["roofline"]
      sent = sum(t["sent"] for t in measured["traffic"])
      cells += [
        f"{measured['flops'] * plan['devices'] / plan['model_flops']:.2f}",
        f"{sent / 1e9:.1f}",
        f"{line['bound']:.2f}, {line['bound_by']}",
        f"{line['mfu']:.0%}",
      ]
    else:
      cells += ["does not fit", "", "", ""]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def frames_table(window: int) -> str:
  """Model FLOPs of base and windows by length.

  Args:
    window: see `window_flops`.
  """
  lines = [
    "| frames | base, training, TFLOP a video | base, a step of sampling | "
    "windows of 16 | SSR, a step of sampling |",
    "|---|---|---|---|---|",
  ]
  for frames in (16, 80, 160, 320):
    trained = train_job(of_length(base.FULL, frames), alone()).model_flops
    sampled = sample_job(
      of_length(base.FULL, frames), alone(), num_frames=frames
    )
    windows = len(window_starts(frames, 16))
    cells = [frames, tera(trained), tera(sampled.model_flops), windows]
    cells.append(tera(windows * window))
    print(cells, file=sys.stderr, flush=True)
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def windows_table(window: int) -> str:
  """Model FLOPs of super-resolution by number of windows."""
  lines = [
    "| windows of 16 frames | frames they cover, overlap of 2 | overlap of 8 | "
    "SSR, a step of sampling |",
    "|---|---|---|---|",
  ]
  for count in (3, 6, 12, 20):
    covered = [16 + (16 - overlap) * (count - 1) for overlap in (2, 8)]
    cells = [count, *covered, tera(count * window)]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def chips_table(plans: list[dict]) -> str:
  """Training of the base by the number of v5p chips."""
  lines = [
    "| chips of TPU v5p | GiB a chip | GB sent a chip | least s a step | "
    "videos a chip and hour, at most |",
    "|---|---|---|---|---|",
  ]
  kind = lambda plan: (plan["about"]["job"], plan["about"]["config"])
  trained = [
    plan
    for plan in plans
    if kind(plan) == ("train", "configs/base.py") and "v5p" in plan["topology"]
  ]
  for plan in sorted(trained, key=lambda plan: plan["devices"]):
    seconds = plan["measured"]["roofline"]["bound"]
    sent = sum(t["sent"] for t in plan["measured"]["traffic"])
    rate = plan["about"]["videos"] / plan["devices"] / seconds * 3600
    slices = plan["num_slices"]
    cells = [
      f"{plan['devices']}" + (f" in {slices} slices" if slices > 1 else ""),
      f"{plan['memory']['needed'] / GIB:.1f}",
      f"{sent / 1e9:,.0f}",
      f"{seconds:.2f}",
      f"{rate:,.0f}",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def window_flops() -> int:
  """FLOPs of a guided super-resolution step on one window of 16 frames."""
  job = sample_job(of_length(ssr.FULL, 16), alone(), num_frames=16)
  return job.model_flops


def of_length(experiment: Experiment, frames: int) -> Experiment:
  """The experiment with a batch of one clip of `frames` frames."""
  return dataclasses.replace(
    experiment,
    init_from="elsewhere",
    data=dataclasses.replace(experiment.data, num_frames=frames),
    train=dataclasses.replace(experiment.train, batch_size=1, accumulate=1),
  )


def alone() -> jax.sharding.Mesh:
  """A mesh of one device."""
  return make_mesh(MeshConfig(), jax.devices()[:1])


def tera(flops: float) -> str:
  """Formats FLOPs in TFLOP."""
  return f"{flops / 1e12:,.0f}"


if __name__ == "__main__":
  app.run(main)
