"""Attention kernels against plain softmax, and the memory they need."""

import functools
import math

import jax
from jax import export
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models import attention
from lumiere_jax.models.attention import attend, check_platform


def draw(q=6, own=6, shared=5, masked=True, biased=False, b=2, g=3, n=2, d=8):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return {
    "query": normal(b, g, q, n, d),
    "own": normal(b, g, own, 2, n, d) if own else None,
    "shared": normal(b, shared, 2, n, d) if shared else None,
    "mask": rng.random((b, shared)) < 0.6 if masked else None,
    "bias": normal(n, q, own + shared) if biased else None,
  }


def plain(query, own, shared, mask, bias):
  """Query by query in float64."""
  out = np.zeros(query.shape)
  for b, g, q, n in np.ndindex(query.shape[:-1]):
    keys = []
    if shared is not None:
      keys.append(
        shared[b, :, :, n] if mask is None else shared[b, mask[b], :, n]
      )
    if own is not None:
      keys.append(own[b, g, :, :, n])
    key, value = np.moveaxis(np.concatenate(keys).astype(float), 1, 0)
    scores = key @ query[b, g, q, n] / math.sqrt(query.shape[-1])
    if bias is not None:
      seen = np.ones(len(bias[n, q]), bool)
      if mask is not None:
        seen[: len(mask[b])] = mask[b]
      scores += bias[n, q, seen]
    weights = np.exp(scores - scores.max())
    out[b, g, q, n] = weights / weights.sum() @ value
  return out


def results(args, kernel):
  """Output, and gradients of everything that has one."""
  mask = args["mask"]
  rest = {k: v for k, v in args.items() if k != "mask"}

  def loss(rest):
    out = attend(**rest, mask=mask, kernel=kernel)
    return (out * jnp.sin(jnp.arange(out.size).reshape(out.shape))).sum(), out

  grads, out = jax.jit(jax.grad(loss, has_aux=True))(rest)
  return {"out": out, **{k: v for k, v in grads.items() if v is not None}}


def assert_close(got, expected, atol=2e-6):
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, atol=atol, err_msg=name)


CASES = {
  "text and pixels": {},
  "text alone": {"own": 0, "q": 7},
  "frames with a bias": {"shared": 0, "masked": False, "biased": True},
  "all": {"biased": True},
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_are_softmax(case, monkeypatch):
  args = draw(**CASES[case])
  expected = results(args, "xla")
  np.testing.assert_allclose(expected["out"], plain(**args), atol=2e-6)
  keys = sum(
    x.shape[-4] for x in (args["own"], args["shared"]) if x is not None
  )
  scores = lambda queries: 4 * 2 * keys * queries
  # Four queries at a time, which no group has a multiple of; two groups; all.
  for queries in (4, 2 * args["query"].shape[2], 1000):
    monkeypatch.setattr(attention, "SCORES", scores(queries))
    assert_close(results(args, "chunked"), expected)


def test_scores_that_change_no_weight_have_no_gradient():
  """As where all keys are masked: weights are even, whatever scores are."""
  args = draw(own=0, q=7)
  args["mask"] = np.zeros_like(args["mask"])
  grads = results(args, "xla")
  np.testing.assert_array_equal(grads["query"], 0.0)
  keys, values = np.moveaxis(grads["shared"], -3, 0)
  np.testing.assert_array_equal(keys, 0.0)
  assert abs(values).max() > 0


@pytest.mark.parametrize(
  ("kernel", "platform"), [("flash", "cpu"), ("cudnn", "tpu")]
)
def test_kernels_of_other_devices_are_refused(kernel, platform):
  with pytest.raises(UserError, match=f"{kernel}.*{platform}.*use 'auto'"):
    check_platform(kernel, platform)
  for known in ("auto", "xla", "chunked"):
    check_platform(known, platform)


def arrays_of(jaxpr):
  """Sizes of all arrays that a program makes, in loops and calls too."""
  for eqn in jaxpr.eqns:
    yield from (math.prod(v.aval.shape) for v in eqn.outvars)
    for inner in jaxprs_in_params(eqn.params):
      yield from arrays_of(inner)


def test_chunked_holds_one_chunk_of_scores(monkeypatch):
  args = draw(q=64, own=64, d=1, masked=False)
  query, own, shared = (args[k] for k in ("query", "own", "shared"))
  scores = 2 * 64 * 69  # of one group
  monkeypatch.setattr(attention, "SCORES", 4 * scores // 16)

  def largest(kernel):
    loss = lambda *args: attend(*args, kernel=kernel).sum()
    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(query, own, shared)
    return max(arrays_of(jaxpr.jaxpr))

  assert largest("xla") == 2 * 3 * scores
  assert largest("chunked") == own.size < scores


@pytest.fixture
def interpreted(monkeypatch):
  """The TPU kernel, interpreted."""
  make = functools.partial(splash_attention.make_splash_mha, interpret=True)
  monkeypatch.setattr(splash_attention, "make_splash_mha", make)


@pytest.mark.parametrize(
  "case",
  [
    {"own": 130, "q": 130},
    {"own": 123, "q": 128, "masked": False},  # 128 keys: no padding
    {"own": 0, "q": 9},
  ],
)
def test_fused_tpu_kernel_is_softmax(case, interpreted, monkeypatch):
  monkeypatch.setattr(attention, "_BLOCK", 128)
  args = draw(**case, b=2, g=1)
  assert_close(results(args, "flash"), results(args, "xla"), 2e-5)


def primitives(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn.primitive.name
    for inner in jaxprs_in_params(eqn.params):
      yield from primitives(inner)


def test_auto_takes_what_the_platform_has(monkeypatch):
  args = draw(q=128, own=128, b=1, g=1)
  small = jax.make_jaxpr(lambda: attend(**args, kernel="auto"))()
  assert "scan" not in set(primitives(small.jaxpr))
  monkeypatch.setattr(attention, "SCORES", 0)
  auto = jax.jit(lambda: attend(**args, kernel="auto"))
  lowered = lambda platform: export.export(auto, platforms=[platform])()
  assert "tpu_custom_call" in lowered("tpu").mlir_module()
  assert "tpu_custom_call" not in lowered("cpu").mlir_module()
  np.testing.assert_allclose(auto(), plain(**args), atol=2e-6)
  # The fused kernel has no bias.
  args = draw(masked=False, biased=True)
  for kernel in ("auto", "flash"):
    out = attend(**args, kernel=kernel)
    np.testing.assert_allclose(out, plain(**args), atol=2e-6)


def test_chunked_is_exported_for_all_platforms(monkeypatch):
  monkeypatch.setattr(attention, "SCORES", 0)
  args = draw()
  chunked = jax.jit(lambda: attend(**args, kernel="chunked"))
  exported = export.export(chunked, platforms=("cpu", "cuda", "tpu"))()
  np.testing.assert_allclose(exported.call(), plain(**args), atol=2e-6)
