"""Tables of a run's parameters and memory, by block."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax
import numpy as np

from lumiere_jax.models.lora import PREFIX
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams

_LEVEL = re.compile(r"(temporal_)?(down|up)_(\d+)_")


def block_of(path: str) -> str:
  """The block that a leaf belongs to, e.g. 'down_1' or 'temporal_mid'.

  All of a level is one block, its attention and resampling too; what
  inflation adds stands apart from what was there before. The adapter of a leaf
  counts with it.
  """
  module = path.removeprefix(PREFIX).partition("/")[0]
  if match := _LEVEL.match(module):
    added, side, level = match.groups()
    return f"{added or ''}{side}_{level}"
  for name in ("temporal_mid", "mid", "text", "head"):
    if module.startswith(name):
      return name
  return module


def by_block(flat: FlatParams) -> dict[str, FlatParams]:
  """{'down_0': its leaves, ...} in the order that a video passes them."""
  blocks: dict[str, FlatParams] = {}
  for path, leaf in flat.items():
    blocks.setdefault(block_of(path), {})[path] = leaf
  return {name: blocks[name] for name in sorted(blocks, key=passed)}


def passed(block: str) -> tuple:
  """Sorts blocks: inputs, down, middle, up, head; what is added comes after."""
  added = block.startswith("temporal_")
  side, _, level = block.removeprefix("temporal_").partition("_")
  rank = {"down": 1, "mid": 2, "up": 3, "head": 4}.get(side, 0)
  depth = int(level) if rank in (1, 3) else 0
  return rank, -depth if side == "up" else depth, added, block


MEBI = 2**20


def parameter_table(trainable: FlatParams, frozen: FlatParams) -> str:
  """Parameters of each block, trainable and frozen, and their sums."""
  blocks = [by_block(flat) for flat in (trainable, frozen)]
  names = sorted({*blocks[0], *blocks[1]}, key=passed)
  count = lambda flat: sum(leaf.size for leaf in flat.values())
  rows = [
    (name, *(count(block.get(name, {})) for block in blocks)) for name in names
  ]
  rows.append(("all", count(trainable), count(frozen)))
  cells = [(name, *(f"{n:,}" if n else "" for n in ns)) for name, *ns in rows]
  return _table(("parameters", "trainable", "frozen"), cells)


def memory_by_group(state: TrainState, frozen: FlatParams) -> dict[str, int]:
  """Bytes on each device of all that stays there between steps.

  And of the gradients, which do not: they are as large as what trains.
  """
  return {
    "frozen weights": _bytes(frozen),
    "trainable weights": _bytes(state.trainable),
    "average": _bytes(state.ema),
    "optimizer": _bytes(state.opt_state),
    "gradients": _bytes(state.trainable),
  }


def memory_table(groups: Mapping[str, int]) -> str:
  """Bytes by group as a table in MiB, with their sum."""
  rows = [*groups.items(), ("all", sum(groups.values()))]
  cells = [(name, f"{size / MEBI:,.1f}") for name, size in rows]
  return _table(("memory", "MiB a device"), cells)


def _bytes(tree: Any) -> int:
  """Of one device's part of all leaves."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape))
    * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  line = lambda row: (
    "  "
    + "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
  )
  return "\n".join(line(row).rstrip() for row in (head, *rows))
