"""What compilers are asked for."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.parallel import backend


@pytest.fixture
def asked(monkeypatch):
  """Asks for these options, of which nothing is remembered."""

  def ask(options):
    monkeypatch.setattr(backend, "_CPU", options)
    backend.compiler_options.cache_clear()
    return backend.compiler_options("cpu")

  yield ask
  backend.compiler_options.cache_clear()


def test_accelerators_are_asked_for_nothing():
  assert backend.compiler_options("tpu") == {}
  assert backend.compiler_options("gpu") == {}


def test_this_compiler_knows_every_option(asked):
  options = backend._CPU
  assert asked(options) == options


def test_what_runs_once_is_compiled_in_a_hurry():
  options = backend.compiler_options("cpu", runs_once=True)
  assert options == backend._CPU | backend._ONCE
  assert backend.compiler_options("tpu", runs_once=True) == {}


def test_a_hurry_to_draw_few_leaves_alone():
  leaf = lambda size: {"leaf": jax.ShapeDtypeStruct((size,), jnp.float32)}
  few, many = (backend.drawing_options("cpu", leaf(2**n)) for n in (20, 30))
  assert few == backend._CPU | backend._ONCE
  assert many == backend._CPU


def test_what_a_compiler_does_not_know_is_left_out(asked):
  known = {"xla_cpu_enable_fast_math": False}
  assert asked({"xla_cpu_no_such_option": "1", **known}) == known


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 2), ("tpu", 0)])
def test_only_cpus_write_out_what_is_materialised(platform, barriers):
  """Of the value and of its gradient."""
  loss = lambda x: jnp.square(backend.materialised(x * 2.0)).sum()
  lowered = export.export(jax.jit(jax.grad(loss)), platforms=[platform])(
    jax.ShapeDtypeStruct((3,), jnp.float32)
  )
  assert (
    lowered.mlir_module().count("stablehlo.optimization_barrier") == barriers
  )


def test_materialised_changes_nothing():
  x = jnp.arange(3.0)
  loss = lambda x: (backend.materialised(x) ** 3).sum()
  np.testing.assert_array_equal(backend.materialised(x), x)
  np.testing.assert_allclose(jax.grad(loss)(x), 3 * x**2)
