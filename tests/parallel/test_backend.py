"""Compiler options by backend."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.parallel import backend


@pytest.fixture
def options_of(monkeypatch):
  """`compiler_options` where `_CPU` is replaced, without its cache."""

  def get(options):
    monkeypatch.setattr(backend, "_CPU", options)
    backend.compiler_options.cache_clear()
    return backend.compiler_options("cpu")

  yield get
  backend.compiler_options.cache_clear()


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("runs_once", [False, True])
def test_accelerators_have_no_options(platform, runs_once):
  assert backend.compiler_options(platform, runs_once=runs_once) == {}


def test_this_compiler_knows_every_option(options_of):
  options = backend._CPU
  assert options_of(options) == options


def test_unknown_options_are_left_out(options_of):
  known = {"xla_cpu_enable_fast_math": False}
  assert options_of({"xla_cpu_no_such_option": "1", **known}) == known


def test_programs_that_run_once_compile_fast():
  fast = backend._CPU | backend._RUNS_ONCE
  assert backend.compiler_options("cpu", runs_once=True) == fast
  leaf = lambda n: {"leaf": jax.ShapeDtypeStruct((2**n,), jnp.float32)}
  assert backend.init_compiler_options("cpu", leaf(20)) == fast
  assert backend.init_compiler_options("cpu", leaf(30)) == backend._CPU


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 2), ("tpu", 0)])
def test_only_cpus_materialise_values_and_gradients(platform, barriers):
  loss = lambda x: jnp.square(backend.materialised(x * 2.0)).sum()
  lowered = export.export(jax.jit(jax.grad(loss)), platforms=[platform])(
    jax.ShapeDtypeStruct((3,), jnp.float32)
  )
  text = lowered.mlir_module()
  assert text.count("stablehlo.optimization_barrier") == barriers


def test_materialised_changes_no_value():
  x = jnp.arange(3.0)
  loss = lambda x: (backend.materialised(x) ** 3).sum()
  np.testing.assert_array_equal(backend.materialised(x), x)
  np.testing.assert_allclose(jax.grad(loss)(x), 3 * x**2)
