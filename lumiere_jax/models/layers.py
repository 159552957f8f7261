"""Linear layers whose weights may lie cut up over a mesh (FSDP).

They round a kernel to the dtype of the computation first and gather it then,
so that half the bytes travel, and activations stay where they are.
"""

import functools
from typing import Any

import flax.linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from lumiere_jax.parallel.sharding import whole


def gathered(inputs: Array, *weights: Array | None, dtype: Any) -> list[Array]:
  """Inputs and whole weights, all of a dtype."""
  inputs, *weights = promote_dtype(inputs, *weights, dtype=dtype)
  return [inputs, *(w if w is None else whole(w) for w in weights)]


Conv = functools.partial(nn.Conv, promote_dtype=gathered)
Dense = functools.partial(nn.Dense, promote_dtype=gathered)
DenseGeneral = functools.partial(nn.DenseGeneral, promote_dtype=gathered)
