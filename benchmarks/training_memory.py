"""Training memory of every stage at full size, by group.

python -m benchmarks.training_memory [--adapter_rank=16]

Counted from shapes, without allocation: the unsharded state between steps, and
the gradients. Activations depend on batch and remat; a run prints its temporary
memory when it compiles its step.
"""

import dataclasses
import functools

from absl import app, flags
import jax
import numpy as np

from benchmarks.initial_state import initial_state
from benchmarks.markdown import table
from configs import base, conditional, ssr, ssr_image, t2i
from lumiere_jax.training.config import Experiment, LoraConfig

RANK = flags.DEFINE_integer("adapter_rank", 16, "Adapter rank of the last row.")
GIBI = 2**30
HEAD = (
  *("GiB", "frozen", "trainable", "average", "optimizer", "gradients", "total"),
)


def main(argv: list[str]) -> None:
  """Prints the table in Markdown."""
  del argv
  given = functools.partial(dataclasses.replace, init_from="given")
  train = lambda experiment, **changes: dataclasses.replace(
    experiment, train=dataclasses.replace(experiment.train, **changes)
  )
  rows = {
    "t2i": t2i.FULL,
    "t2i, Adafactor": train(t2i.FULL, optimizer="adafactor"),
    "base": given(base.FULL),
    "base, every layer trained": train(given(base.FULL), trainable=".*"),
    "conditional": given(conditional.FULL),
    "ssr_image": ssr_image.FULL,
    "ssr": given(ssr.FULL),
    f"base, spatial adapter of rank {RANK.value}": dataclasses.replace(
      given(base.FULL), lora=LoraConfig(rank=RANK.value)
    ),
  }
  sizes = {name: memory(experiment) for name, experiment in rows.items()}
  cells = lambda row: (f"{size / GIBI:.2f}" for size in (*row, sum(row)))
  print(table(HEAD, ((name, *cells(row)) for name, row in sizes.items())))


def memory(experiment: Experiment) -> list[int]:
  """Bytes of frozen and trainable weights, average, optimizer, gradients."""
  state, frozen = jax.eval_shape(functools.partial(initial_state, experiment))
  trainable = state.trainable
  groups = (frozen, trainable, state.ema, state.opt_state, trainable)
  size = lambda leaf: leaf.size * np.dtype(leaf.dtype).itemsize
  return [sum(map(size, jax.tree.leaves(group))) for group in groups]


if __name__ == "__main__":
  app.run(main)
