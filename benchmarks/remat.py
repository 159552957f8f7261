"""Memory, time and MFU of a training step for each kind of remat.

python -m benchmarks.remat --config=configs/base.py:tiny \
    [--config.execution.dtype=bfloat16 ...] [--kinds=none,full] [--steps=5]

Each kind is applied to every level. Weights and clips are random: neither time
nor memory depends on them. Stages with a parent have frozen spatial layers.
"""

from collections.abc import Sequence
import dataclasses
import functools
import time

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from benchmarks.initial_state import initial_state, make_task
from lumiere_jax.models.config import REMAT
from lumiere_jax.parallel.hardware import peak_flops
from lumiere_jax.parallel.mesh import make_mesh
from lumiere_jax.parallel.multihost import replicated
from lumiere_jax.training.config import Experiment
from lumiere_jax.training.task import Batch
from lumiere_jax.training.train_step import Program, TrainStep

CONFIG = config_flags.DEFINE_config_file("config", None, "Of the stage.")
KINDS = flags.DEFINE_list("kinds", ["none", *REMAT], "Kinds of remat.")
STEPS = flags.DEFINE_integer("steps", 5, "Timed steps, after a warm-up.")
MEBI = 2**20


def main(argv: Sequence[str]) -> None:
  """Prints the table in Markdown, each row as soon as it is measured."""
  del argv
  experiment = dataclasses.replace(
    Experiment.from_config(CONFIG.value.to_dict()), init_from="given"
  )
  device = jax.devices()[0].device_kind
  print(
    f"{device}, {experiment.execution.dtype}, batch {batch_shape(experiment)}"
  )
  print("| remat | temporary MiB | s per step | TFLOP/s | MFU |")
  print("|---|---|---|---|---|")
  for kind in dict.fromkeys(KINDS.value):
    remat = (kind,) * len(experiment.model.channels)
    execution = dataclasses.replace(experiment.execution, remat=remat)
    row = measure(dataclasses.replace(experiment, execution=execution))
    print(f"| {kind} | {row} |")


def measure(experiment: Experiment) -> str:
  """The cells of a row."""
  programs: list[Program] = []
  announce = lambda _, made, waited: programs.append(made)
  step = TrainStep(experiment, make_task(experiment), announce)
  mesh = make_mesh(experiment.mesh)
  jax.set_mesh(mesh)
  placed = replicated(mesh)
  init = functools.partial(initial_state, experiment)
  state, frozen = jax.jit(init, out_shardings=placed)()
  inputs = (make_batch(experiment), jax.random.key(0))
  batch, key = jax.device_put(inputs, placed)
  try:
    state, _ = jax.block_until_ready(step(state, frozen, batch, key))
    start = time.perf_counter()
    for _ in range(STEPS.value):
      state, metrics = step(state, frozen, batch, key)
    jax.block_until_ready(metrics)
  except jax.errors.JaxRuntimeError as error:
    return f"{str(error).splitlines()[0][:60]} | | | "
  seconds = (time.perf_counter() - start) / STEPS.value
  speed = step.flops(batch) / seconds
  peak = (peak_flops(jax.devices()[0].device_kind) or 0) * mesh.size
  return " | ".join(
    [
      f"{(programs[0].temporary_bytes or 0) / MEBI:,.0f}",
      f"{seconds:.3f}",
      f"{speed / 1e12:.3g}",
      f"{speed / peak:.1%}" if peak else "",
    ]
  )


def make_batch(experiment: Experiment) -> Batch:
  """Random clips and text features."""
  size, length = batch_shape(experiment), experiment.text.max_length
  clips = jax.random.randint(jax.random.key(0), size, 0, 256)
  text = jax.random.normal(
    jax.random.key(1), (size[0], length, experiment.model.text_dim)
  )
  batch = {
    "video": clips.astype(jnp.uint8),
    "text": text,
    "text_mask": jnp.ones(text.shape[:2], bool),
  }
  if experiment.model.cond_channels:
    batch["mask"] = jnp.ones((*size[:-1], 1), jnp.uint8)
  return batch


def batch_shape(experiment: Experiment) -> tuple[int, ...]:
  """(b, t, h, w, c)."""
  data = experiment.data
  return (experiment.train.batch_size, data.num_frames, *data.resolution, 3)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
