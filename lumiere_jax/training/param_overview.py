"""Parameter and memory tables, by block."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax
import numpy as np

from lumiere_jax.models.lora import PREFIX
from lumiere_jax.models.params import is_temporal
from lumiere_jax.training.state import TrainState
from lumiere_jax.typing import FlatParams

MEBI = 2**20
_LEVEL = re.compile(r"(temporal_)?(down|up)_(\d+)_")


def block_of(path: str) -> str:
  """The block that a leaf belongs to, e.g. 'down_1' or 'temporal_mid'.

  A level is one block, with its attention and resampling. Temporal layers are
  blocks of their own. An adapter belongs to the block of its leaf.
  """
  module = path.removeprefix(PREFIX).partition("/")[0]
  if match := _LEVEL.match(module):
    temporal, side, level = match.groups()
    return f"{temporal or ''}{side}_{level}"
  for name in ("temporal_mid", "mid", "text", "head"):
    if module.startswith(name):
      return name
  return module


def by_block(flat: FlatParams) -> dict[str, FlatParams]:
  """Block -> its leaves, in the order of the forward pass."""
  blocks: dict[str, FlatParams] = {}
  for path, leaf in flat.items():
    blocks.setdefault(block_of(path), {})[path] = leaf
  return {name: blocks[name] for name in sorted(blocks, key=_block_order)}


def _block_order(block: str) -> tuple:
  """Sort key: input, down, middle, up, head; temporal after spatial."""
  side, _, level = block.removeprefix("temporal_").partition("_")
  rank = {"down": 1, "mid": 2, "up": 3, "head": 4}.get(side, 0)
  depth = int(level) if rank in (1, 3) else 0
  return rank, -depth if side == "up" else depth, is_temporal(block), block


def parameter_table(trainable: FlatParams, frozen: FlatParams) -> str:
  """Trainable and frozen parameter counts of each block, with their sums."""
  blocks = [by_block(flat) for flat in (trainable, frozen)]
  names = sorted({*blocks[0], *blocks[1]}, key=_block_order)
  count = lambda flat: sum(leaf.size for leaf in flat.values())
  rows = [
    (name, *(count(block.get(name, {})) for block in blocks)) for name in names
  ]
  rows.append(("all", count(trainable), count(frozen)))
  cells = [(name, *(f"{n:,}" if n else "" for n in ns)) for name, *ns in rows]
  return _table(("parameters", "trainable", "frozen"), cells)


def memory_by_group(state: TrainState, frozen: FlatParams) -> dict[str, int]:
  """Bytes per device of weights, optimizer state and gradients."""
  return {
    "frozen weights": _bytes(frozen),
    "trainable weights": _bytes(state.trainable),
    "average": _bytes((state.ema, state.averages)),
    "optimizer": _bytes(state.opt_state),
    "gradients": _bytes(state.trainable),
  }


def memory_table(groups: Mapping[str, int]) -> str:
  """Bytes by group as a table in MiB, with their sum."""
  rows = [*groups.items(), ("all", sum(groups.values()))]
  cells = [(name, f"{size / MEBI:,.1f}") for name, size in rows]
  return _table(("memory", "MiB a device"), cells)


def _bytes(tree: Any) -> int:
  """Bytes of one device's shards of all leaves."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape))
    * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """The first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  lines = []
  for name, *cells in (head, *rows):
    right = zip(cells, widths[1:], strict=True)
    line = [name.ljust(widths[0]), *(cell.rjust(n) for cell, n in right)]
    lines.append(f"  {'  '.join(line)}".rstrip())
  return "\n".join(lines)
