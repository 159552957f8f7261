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
  """{'down_0': its leaves, ...} in the order of first appearance."""
  blocks: dict[str, FlatParams] = {}
  for path, leaf in flat.items():
    blocks.setdefault(block_of(path), {})[path] = leaf
  return blocks
