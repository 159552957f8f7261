"""Floating-point operations of a computation, counted from its jaxpr.

Only matrix products and convolutions count, two operations per multiply-add,
as is usual for model FLOPs. Loop bodies count as often as they run; a
compiler's own cost analysis counts them once.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *args: Any) -> int:
  """FLOPs of `function(*args)`; arguments may be shapes.

  Operations that the result does not depend on do not count; those that
  rematerialisation repeats do.
  """
  return flops_of(jax.make_jaxpr(function)(*args))


def flops_of(traced: core.ClosedJaxpr) -> int:
  """`count_flops` of a traced function."""
  return _count(traced.jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(_count_equation(equation) for equation in _needed(jaxpr))


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
  """The equations that the outputs depend on, in order."""
  variables = lambda atoms: {a for a in atoms if isinstance(a, core.Var)}
  needed = variables(jaxpr.outvars)
  kept = []
  for equation in reversed(jaxpr.eqns):
    if equation.effects or needed & variables(equation.outvars):
      kept.append(equation)
      needed |= variables(equation.invars)
  return kept[::-1]


def _count_equation(equation: core.JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "cond":
    return max(_count(branch.jaxpr) for branch in params["branches"])
  times = params["length"] if name == "scan" else 1
  return times * sum(map(_count, _inner(params)))


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
  """The jaxprs that an equation runs: of jit, scan, remat, custom rules."""
  closed = [
    value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
    for value in params.values()
  ]
  return [value for value in closed if isinstance(value, core.Jaxpr)]


def _dot(equation: core.JaxprEqn) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = _shape(equation.invars[0])
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * math.prod(_shape(equation.outvars[0])) * depth


def _convolution(equation: core.JaxprEqn) -> int:
  """Each output sums over kernel positions and the channels of a group."""
  numbers = equation.params["dimension_numbers"]
  kernel = _shape(equation.invars[1])
  per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
  # With batch groups (kernel gradients of grouped convolutions), the kernel's
  # channels are already those of one group.
  return 2 * math.prod(_shape(equation.outvars[0])) * per_output


def _shape(atom: Any) -> tuple[int, ...]:
  return atom.aval.shape
