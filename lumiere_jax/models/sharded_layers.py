"""Linear layers whose weights may lie cut up over a mesh (FSDP).

They round a kernel to the dtype of the computation first and gather it then,
so that half the bytes travel, and activations stay where they are.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import flax.linen as nn
from flax.linen.dtypes import promote_dtype
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.parallel.backend import materialised
from lumiere_jax.parallel.sharding import gather_weight

_NHWC = ("NHWC", "HWIO", "NHWC")


def gathered(inputs: Array, *weights: Array | None, dtype: Any) -> list[Array]:
  """Inputs and whole weights, all of a dtype."""
  inputs, *weights = promote_dtype(inputs, *weights, dtype=dtype)
  return [inputs, *(w if w is None else gather_weight(w) for w in weights)]


@jax.custom_vjp
def convolve(
  x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"]
) -> Float[Array, "b h w d"]:
  """Convolution of odd sides, stride 1, zeros beyond the edges."""
  return _convolve_forward(x, kernel)[0]


def _convolve_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
  x = materialised(x)
  out = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC
  )
  return materialised(out), (x, kernel)


def _convolve_backward(kept: tuple, g: Array) -> tuple[Array, Array]:
  x, kernel = kept
  g = materialised(g)
  to_input = convolve(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
  # Each channel of x, all samples of it, is convolved with g: an image with as
  # many channels as there are samples. Written out, for the CPU's compiler
  # takes the way round of `jax.grad` for a general one, which in loops is
  # hundreds of times slower.
  edge = [(n // 2, n // 2) for n in kernel.shape[:2]]
  to_kernel = jax.lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    (1, 1),
    edge,
    dimension_numbers=_NHWC,
  )
  return to_input, to_kernel.transpose(1, 2, 0, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _same(
  x: Array,
  kernel: Array,
  strides: Sequence[int],
  padding: str,
  *,
  lhs_dilation: Sequence[int],
  rhs_dilation: Sequence[int],
  feature_group_count: int,
  **_: Any,
) -> Array:
  """`convolve` as `nn.Conv` asks for it; what it cannot do is refused."""
  steps = {*strides, *lhs_dilation, *rhs_dilation, feature_group_count}
  if (
    steps != {1}
    or padding != "SAME"
    or not all(n % 2 for n in kernel.shape[:2])
  ):
    raise ValueError(
      f"kernel {kernel.shape[:2]}, strides {strides}, dilations {lhs_dilation} "
      f"and {rhs_dilation}, {feature_group_count} groups, padding {padding!r}: "
      "only odd sides, 'SAME' and 1 elsewhere"
    )
  return checkpoint_name(convolve(x, kernel), "convolution")


def product(x: Array, kernel: Float[Array, "c d"]) -> Array:
  """x @ kernel, see `_product`."""
  return _product(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _product(x: Array, kernel: Array, dimensions: Any, **rest: Any) -> Array:
  """`jax.lax.dot_general` of the last axes of x and the first of a kernel.

  Of two matrices where a mesh cuts nothing: a kernel's gradient sums over
  positions, which a CPU copies into another order where these are more than
  one axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not (mesh.empty or mesh.size == 1):
    return jax.lax.dot_general(x, kernel, dimensions, **rest)
  count = len(dimensions[0][0])
  size = math.prod(kernel.shape[:count])
  flat = x.reshape(-1, size), kernel.reshape(size, -1)
  out = jax.lax.dot_general(*flat, (((1,), (0,)), ((), ())), **rest)
  return out.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


Conv = functools.partial(
  nn.Conv, promote_dtype=gathered, conv_general_dilated=_same
)

Dense = functools.partial(
  nn.Dense, promote_dtype=gathered, dot_general=_product
)

DenseGeneral = functools.partial(
  nn.DenseGeneral, promote_dtype=gathered, dot_general=_product
)
