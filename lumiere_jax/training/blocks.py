"""The network's leaves by block, for tables and gradient norms."""

import re

from lumiere_jax.models.lora import PREFIX
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
