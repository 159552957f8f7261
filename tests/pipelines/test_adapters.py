"""Adapter files: whose they are, and on what they may be worn."""

import numpy as np
import pytest

from lumiere_jax.io import safetensors
from lumiere_jax.pipelines.adapters import (
  fingerprint,
  read_adapter,
  wear,
  write_adapter,
)
from lumiere_jax.typing import UserError

BASE = {"a/kernel": np.ones((2, 3), np.float32), "a/bias": np.zeros(3)}
LOW = {
  "lora/a/kernel/a": np.array([[1.0], [2.0]], np.float32),
  "lora/a/kernel/b": np.array([[1.0, 0.0, -1.0]], np.float32),
}


@pytest.fixture
def workdir(tmp_path):
  """A workdir that holds an adapter trained on `BASE`."""
  write_adapter(
    tmp_path / "adapter.safetensors",
    LOW,
    stage="base",
    base=fingerprint(BASE),
    base_name="out/base",
    step=7,
  )
  return tmp_path


def test_it_is_read_from_a_file_or_a_workdir(workdir):
  for path in (workdir, workdir / "adapter.safetensors"):
    adapter = read_adapter(path)
    assert (adapter.stage, adapter.base_name) == ("base", "out/base")
    assert adapter.flat.keys() == LOW.keys()


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.5])
def test_worn_it_corrects_by_its_scale(workdir, scale):
  other = {"x": np.ones(2)}
  worn = wear([read_adapter(workdir)], {"base": BASE, "ssr": other}, scale)
  change = np.outer([1.0, 2.0], [1.0, 0.0, -1.0])
  np.testing.assert_allclose(worn["base"]["a/kernel"], 1 + scale * change)
  assert worn["base"].keys() == BASE.keys()
  assert worn["ssr"] is other
  np.testing.assert_array_equal(BASE["a/kernel"], 1)  # nobody else's


def test_several_add_up(workdir):
  adapter = read_adapter(workdir)
  worn = wear([adapter, adapter], {"base": BASE}, 1.0)
  change = np.outer([1.0, 2.0], [1.0, 0.0, -1.0])
  np.testing.assert_allclose(worn["base"]["a/kernel"], 1 + 2 * change)


@pytest.mark.parametrize(
  ("weights", "words"),
  [
    ({"ssr": BASE}, r"is for stage 'base', --model holds ssr"),
    ({"base": {"b/kernel": np.ones(3)}}, r"this one has no a/kernel"),
    (
      {"base": BASE | {"a/kernel": np.ones((3, 3))}},
      "a/kernel of another shape",
    ),
    (
      {"base": BASE | {"a/bias": np.ones(3)}},
      r"trained on the base of 'out/base' \(weights \w{16}\).*\(\w{16}\)",
    ),
  ],
)
def test_another_base_is_refused_by_name(workdir, weights, words):
  with pytest.raises(UserError, match=words) as error:
    wear([read_adapter(workdir)], weights, 1.0)
  assert f"--adapter={workdir}" in str(error.value)
  assert "\n" not in str(error.value)


def test_what_is_no_adapter_is_refused(tmp_path):
  safetensors.save(tmp_path / "other.safetensors", LOW)
  with pytest.raises(UserError, match="is no adapter of this program"):
    read_adapter(tmp_path / "other.safetensors")
  with pytest.raises(UserError, match="no such file"):
    read_adapter(tmp_path / "gone.safetensors")
