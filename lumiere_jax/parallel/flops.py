"""Floating-point operations of a computation, counted from its jaxpr.

Matrix products and convolutions are counted, two operations for each
multiply-add, as is usual for model FLOPs; everything else is small beside
them. A compiler's own count takes the body of a loop once; here it is taken
as often as it runs.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *args: Any) -> int:
  """FLOPs of `function(*args)`; arguments may be shapes.

  What the result does not depend on is not counted. What rematerialisation
  computes a second time is: count a function that does without it.
  """
  return flops_of(jax.make_jaxpr(function)(*args))


def flops_of(traced: core.ClosedJaxpr) -> int:
  """`count_flops` of a function that is traced already."""
  return _count(traced.jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(_count_equation(equation) for equation in _needed(jaxpr))


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
  """Equations that the outputs depend on, in order."""
  variables = lambda atoms: {a for a in atoms if isinstance(a, core.Var)}
  wanted = variables(jaxpr.outvars)
  kept = []
  for equation in reversed(jaxpr.eqns):
    if equation.effects or wanted & variables(equation.outvars):
      kept.append(equation)
      wanted |= variables(equation.invars)
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
  found = []
  for value in params.values():
    if isinstance(value, core.ClosedJaxpr):
      found.append(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
      found.append(value)
  return found


def _dot(equation: core.JaxprEqn) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * equation.outvars[0].aval.size * depth


def _convolution(equation: core.JaxprEqn) -> int:
  """Every output sums over kernel positions and the channels of a group."""
  numbers = equation.params["dimension_numbers"]
  kernel = equation.invars[1].aval
  outputs = kernel.shape[numbers.rhs_spec[0]]
  per_output = kernel.size // outputs
  # Where the batch is in groups (gradients of kernels of grouped convolutions)
  # the kernel's channels are already those of one group.
  return 2 * equation.outvars[0].aval.size * per_output
