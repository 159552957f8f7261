"""Linear layers whose weights may be sharded over a mesh (FSDP).

A kernel is first rounded to the dtype of the computation and then gathered,
which halves the communication; activations stay on their devices.
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


def gathered(
  *arrays: Array | None, dtype: Any = None, inexact: bool = True
) -> list[Array | None]:
  """Inputs and gathered weights, all of one dtype."""
  inputs, *weights = promote_dtype(*arrays, dtype=dtype, inexact=inexact)
  return [inputs, *(w if w is None else gather_weight(w) for w in weights)]


@jax.custom_vjp
def _convolve(
  x: Float[Array, "b h w c"], kernel: Float[Array, "i j c d"]
) -> Float[Array, "b h w d"]:
  """Convolution with an odd kernel size, stride 1 and zero padding."""
  return _convolve_forward(x, kernel)[0]


def _convolve_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
  x = materialised(x)
  out = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC
  )
  return materialised(out), (x, kernel)


def _convolve_backward(residuals: tuple, g: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  g = materialised(g)
  to_input = _convolve(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
  # Convolves x with g, with channels as the batch and samples as channels.
  # XLA on CPU compiles the transpose that `jax.grad` would give to a general
  # convolution, which is hundreds of times slower inside loops.
  edge = [(n // 2, n // 2) for n in kernel.shape[:2]]
  to_kernel = jax.lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    (1, 1),
    edge,
    dimension_numbers=_NHWC,
  )
  return to_input, to_kernel.transpose(1, 2, 0, 3)


_convolve.defvjp(_convolve_forward, _convolve_backward)
# Traced once for all layers of the same shapes.
convolve = jax.jit(_convolve)


def _conv_general_dilated(
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
  """`convolve` with the signature that `nn.Conv` calls."""
  steps = {*strides, *lhs_dilation, *rhs_dilation, feature_group_count}
  odd = all(n % 2 for n in kernel.shape[:2])
  if steps != {1} or padding != "SAME" or not odd:
    raise ValueError(
      f"kernel {kernel.shape[:2]}, strides {strides}, dilations {lhs_dilation} "
      f"and {rhs_dilation}, {feature_group_count} groups, padding {padding!r}: "
      "only odd kernel sizes, 'SAME' and 1 elsewhere are supported"
    )
  return checkpoint_name(convolve(x, kernel), "convolution")


def product(x: Array, kernel: Float[Array, "c d"]) -> Array:
  """x @ kernel, see `_dot_general`."""
  return _dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _dot_general(
  x: Array, kernel: Array, dimensions: Any, **rest: Any
) -> Array:
  """`jax.lax.dot_general` of the last axes of x and the first of a kernel.

  On one device it is a product of two matrices: the gradient of a kernel sums
  over all positions, and with several axes of them a CPU transposes first.
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
  nn.Conv, promote_dtype=gathered, conv_general_dilated=_conv_general_dilated
)

Dense = functools.partial(
  nn.Dense, promote_dtype=gathered, dot_general=_dot_general
)

DenseGeneral = functools.partial(
  nn.DenseGeneral, promote_dtype=gathered, dot_general=_dot_general
)
