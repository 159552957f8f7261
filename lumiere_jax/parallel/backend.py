"""Compiler options and workarounds by backend."""

from collections.abc import Mapping
import functools

import jax
from jaxtyping import Array

_CPU = {
  # XLA's newer CPU library is fast at sums; convolutions and matrix products
  # are faster without it, kernel gradients of convolutions several times.
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
  # This pass removes the barriers of `materialised` before fusion.
  "xla_disable_hlo_passes": "cse_barrier_expander",
}

_RUNS_ONCE = {
  # Half the compilation time; the program runs several times as long.
  "xla_backend_optimization_level": "0"
}

_FEW_PARAMS = 2**25


@functools.cache
def compiler_options(
  platform: str, *, runs_once: bool = False
) -> dict[str, str]:
  """Compiler options for `jax.jit` on 'cpu'; 'gpu' and 'tpu' have none.

  Options that this version of the compiler does not know are left out. A
  program that `runs_once` takes longer to compile than to run.
  """
  known: dict[str, str] = {}
  if platform != "cpu":
    return known
  for name, value in (_CPU | (_RUNS_ONCE if runs_once else {})).items():
    try:
      jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
      continue
    known[name] = value
  return known


def init_compiler_options(
  platform: str, leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, str]:
  """Options for a program that initialises leaves and runs once.

  For many leaves, running would take longer than the compilation saves.
  """
  return compiler_options(platform, runs_once=few_params(leaves))


def few_params(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
  """Whether initialising these leaves takes less time than compiling it."""
  return sum(leaf.size for leaf in leaves.values()) < _FEW_PARAMS


def platform_of(mesh: jax.sharding.Mesh) -> str:
  """The platform of a mesh's devices (which may be described, not present)."""
  return mesh.devices.flat[0].platform


@jax.custom_vjp
def materialised(x: Array) -> Array:
  """The same array, written to memory once on CPUs; gradients likewise.

  XLA's CPU compiler would otherwise recompute elementwise operations at every
  read, which transposes and convolutions do out of order.
  """
  return jax.lax.platform_dependent(
    x, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )


materialised.defvjp(
  lambda x: (materialised(x), None), lambda _, g: (materialised(g),)
)
