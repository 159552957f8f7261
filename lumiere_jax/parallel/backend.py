"""What compilers are asked for: the one place of choices by backend."""

from collections.abc import Mapping
import functools

import jax
from jaxtyping import Array

_CPU = {
  # XLA's newer CPU library is quick at sums; convolutions and matrix products
  # run faster without it, gradients of convolutions' kernels several times.
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
  # This pass takes out what `materialised` puts in, before operations are
  # fused.
  "xla_disable_hlo_passes": "cse_barrier_expander",
}


_ONCE = {
  # Half the time to compile; the program runs several times as long.
  "xla_backend_optimization_level": "0",
}
_FEW = 2**25


@functools.cache
def compiler_options(
  platform: str, *, runs_once: bool = False
) -> dict[str, str]:
  """What `jax.jit` is to be given; nothing but for CPUs.

  An option that this version of the compiler does not know is left out.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.
    runs_once: whether the program takes longer to compile than it will run.
  """
  known = {}
  if platform != "cpu":
    return known
  for name, value in (_CPU | (_ONCE if runs_once else {})).items():
    try:
      jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
      continue
    known[name] = value
  return known


def drawing_options(
  platform: str, leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, str]:
  """`compiler_options` of a program that draws leaves and runs once.

  Many take longer to draw than what is saved on compiling.
  """
  few = sum(leaf.size for leaf in leaves.values()) < _FEW
  return compiler_options(platform, runs_once=few)


def platform_of(mesh: jax.sharding.Mesh) -> str:
  """The platform of a mesh's devices, which may be those of another machine."""
  return mesh.devices.flat[0].platform


@jax.custom_vjp
def materialised(x: Array) -> Array:
  """The same array; on CPUs its values are computed once, in memory.

  XLA's CPU compiler computes what is elementwise anew wherever it is read,
  which transposes and convolutions do out of order. Gradients likewise.
  """
  return jax.lax.platform_dependent(
    x, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )


materialised.defvjp(
  lambda x: (materialised(x), None), lambda _, g: (materialised(g),)
)
