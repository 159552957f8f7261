"""Adapter files, and merging them into the weights they belong to."""

import dataclasses
import json

import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.inference.adapters import (
  apply_adapters,
  fingerprint,
  read_adapter,
  write_adapter,
)
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.safetensors import LazyArray
from tests.conftest import small_config

BASE = {"a/kernel": np.ones((2, 3), np.float32), "a/bias": np.zeros(3)}

LOW = {
  "lora/a/kernel/a": np.array([[1.0], [2.0]], np.float32),
  "lora/a/kernel/b": np.array([[1.0, 0.0, -1.0]], np.float32),
}


def write(folder, flat, stage="base", base=BASE):
  """An adapter in a workdir."""
  folder.mkdir(exist_ok=True)
  write_adapter(
    folder / "adapter.safetensors",
    flat,
    stage=stage,
    base=fingerprint(base),
    base_name=f"out/{stage}",
    step=9,
  )
  return folder


@pytest.fixture
def workdir(tmp_path):
  """A workdir with an adapter trained on `BASE`."""
  return write(tmp_path, LOW)


def test_reads_a_file_or_a_workdir(workdir):
  for path in (workdir, workdir / "adapter.safetensors"):
    adapter = read_adapter(path)
    assert (adapter.stage, adapter.base_name) == ("base", "out/base")
    assert adapter.flat.keys() == LOW.keys()


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.5])
def test_it_is_merged_with_its_scale(workdir, scale):
  other = {"x": np.ones(2)}
  weights = {"base": BASE, "ssr": other}
  adapter = read_adapter(workdir)
  change = np.outer([1.0, 2.0], [1.0, 0.0, -1.0])
  for count in (2, 1):
    merged = apply_adapters([adapter] * count, weights, {}, scale)
    kernel = merged["base"]["a/kernel"]
    np.testing.assert_allclose(kernel, 1 + count * scale * change)
  assert merged["base"].keys() == BASE.keys()
  assert merged["ssr"] is other
  np.testing.assert_array_equal(BASE["a/kernel"], 1)  # the input is unchanged


@pytest.mark.parametrize(
  ("weights", "words"),
  [
    ({"ssr": BASE}, r"is for stage 'base', model holds ssr"),
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
    apply_adapters([read_adapter(workdir)], weights, {}, 1.0)
  assert f"adapter={workdir}" in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "about", "words"),
  [
    ("other", {}, r"part of a plain LoRA \(lora/a/ker"),
    ("newer", {"format": "lumiere_jax adapter 2"}, "'lumiere_jax adapter 2'"),
    ("gone", None, "no such file"),
  ],
)
def test_what_is_no_adapter_is_refused(tmp_path, name, about, words):
  file = tmp_path / f"{name}.safetensors"
  if about is not None:
    safetensors.save(file, LOW, about)
  with pytest.raises(UserError, match=words):
    read_adapter(file)


# Published adapters. The two stages differ in width.
MODELS = {
  "base": small_config(cond_channels=4),
  "ssr": small_config(
    channels=(16, 24, 48), in_channels=6, noise_conditioned=True
  ),
}

PATH = "mid_attention/out/kernel"
LAYER = "mid_block.attentions.0.to_out.0"

STAGES = {
  stage: {
    path: np.full(leaf.shape, 2, np.float16)
    for path, leaf in abstract_params(model).items()
  }
  for stage, model in MODELS.items()
}


def published(width=32, name=f"unet.{LAYER}", spell=("lora_A", "lora_B")):
  """An adapter of rank 2 that adds 1 for each rank."""
  down, up = (f"{name}.{half}.weight" for half in spell)
  ones = lambda *shape: np.ones(shape, np.float16)
  return {down: ones(2, width), up: ones(width, 2)}


def write_config(folder, **changes):
  settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, **changes}
  (folder / "adapter_config.json").write_text(json.dumps(settings))


def check_merged(path, stage, change, scale=1.0):
  merged = apply_adapters([read_adapter(path)], STAGES, MODELS, scale)
  for name, flat in merged.items():
    if name != stage:
      assert flat is STAGES[name]
  assert merged[stage].keys() == STAGES[stage].keys()
  for leaf_path, leaf in merged[stage].items():
    assert leaf.dtype == np.float16
    expected = 2 + scale * change * (leaf_path == PATH)
    np.testing.assert_array_equal(leaf, np.float16(expected))


@pytest.mark.parametrize(("width", "stage"), [(32, "base"), (48, "ssr")])
@pytest.mark.parametrize("by_folder", [True, False])
def test_a_published_adapter_goes_where_it_fits(
  tmp_path, width, stage, by_folder
):
  file = tmp_path / "pytorch_lora_weights.safetensors"
  safetensors.save(file, published(width), {"format": "pt"})
  for scale in (1.0, 0.7):
    check_merged(tmp_path if by_folder else file, stage, 2, scale)


def test_it_may_have_any_name(tmp_path):
  file = tmp_path / "style.safetensors"
  safetensors.save(file, published(spell=("lora.down", "lora.up")))
  check_merged(file, "base", 2)
  content = {"unet.r": 2, "unet.lora_alpha": 1}
  about = {"lora_adapter_metadata": json.dumps(content)}
  safetensors.save(file, published(), about)
  check_merged(file, "base", 1)


def test_a_peft_folder_is_read_with_its_config(tmp_path):
  tensors = published(name=f"base_model.model.{LAYER}")
  file = tmp_path / "adapter_model.safetensors"
  safetensors.save(file, tensors, {"format": "pt"})
  with pytest.raises(UserError, match=r"adapter_config.json: no such file"):
    read_adapter(tmp_path)
  write_config(tmp_path)
  check_merged(tmp_path, "base", 1)
  safetensors.save(tmp_path / "renamed.safetensors", tensors)
  check_merged(tmp_path / "renamed.safetensors", "base", 1)
  write_config(tmp_path, use_dora=True)
  with pytest.raises(UserError, match=rf"{tmp_path}: .*use_dora=True"):
    read_adapter(tmp_path)


def test_a_config_beside_other_files_counts_too(tmp_path):
  file = tmp_path / "pytorch_lora_weights.safetensors"
  write_config(tmp_path)
  safetensors.save(file, published())
  check_merged(tmp_path, "base", 1)
  safetensors.save(file, published(), {"unet.lora_alpha": "2"})
  with pytest.raises(UserError, match="lora_alpha is given twice, as 1 and 2"):
    read_adapter(tmp_path)
  # Unless it is PEFT's own.
  safetensors.save(tmp_path / "adapter_model.safetensors", published())
  check_merged(file, "base", 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(workdir, tmp_path, bad):
  tensors = published()
  name = next(iter(tensors))
  tensors[name][0, 1] = bad
  safetensors.save(tmp_path / "x.safetensors", tensors)
  with pytest.raises(UserError, match=rf"x\.safetensors: {name} has values"):
    check_merged(tmp_path / "x.safetensors", "base", 2)
  low = {k: v.copy() for k, v in LOW.items()}
  low["lora/a/kernel/a"][0] = bad
  with pytest.raises(UserError, match="lora/a/kernel/a has values that are"):
    read_adapter(write(workdir, low))


def test_it_is_merged_by_lazy_weights_and_with_one_of_ours(tmp_path):
  file = tmp_path / "style.safetensors"
  safetensors.save(file, published())
  own = {f"lora/{PATH}/a": np.ones((4, 8, 1), np.float32)}
  own[f"lora/{PATH}/b"] = np.full((1, 32), 3, np.float32)
  write(tmp_path, own, base=STAGES["base"])
  lazy = {
    path: LazyArray(leaf.shape, leaf.dtype, lambda leaf=leaf: leaf)
    for path, leaf in STAGES["base"].items()
  }
  both = [read_adapter(file), read_adapter(tmp_path / "adapter.safetensors")]
  merged = apply_adapters(both, {"base": lazy}, MODELS, 1.0)["base"]
  assert all(isinstance(leaf, LazyArray) for leaf in merged.values())
  np.testing.assert_array_equal(merged[PATH], np.full((4, 8, 32), 2 + 2 + 3))


def test_where_it_fits_several_stages_one_must_be_named(tmp_path):
  file = tmp_path / "style.safetensors"
  safetensors.save(file, published())
  models = MODELS | {"t2i": dataclasses.replace(MODELS["base"], temporal=None)}
  weights = STAGES | {"t2i": STAGES["base"]}
  words = rf"fits the stages base, t2i; say which, as adapter=base={file}"
  with pytest.raises(UserError, match=words):
    apply_adapters([read_adapter(file)], weights, models, 1.0)
  merged = apply_adapters([read_adapter(f"t2i={file}")], weights, models, 1.0)
  assert merged["base"] is STAGES["base"]
  assert (merged["t2i"][PATH] == 4).all()
  with pytest.raises(UserError, match=r"has no stage 'stem', it holds base, s"):
    apply_adapters([read_adapter(f"stem={file}")], STAGES, MODELS, 1.0)
  with pytest.raises(UserError, match=r"fits no stage.*for ssr: 2 tensors are"):
    apply_adapters([read_adapter(f"ssr={file}")], STAGES, MODELS, 1.0)


def test_a_stage_does_not_change_whose_our_own_is(workdir):
  named = read_adapter(f"base={workdir}")
  assert named.stage == "base"
  with pytest.raises(UserError, match="was trained for stage 'base'; give it"):
    read_adapter(f"ssr={workdir}")


def test_what_fits_nowhere_is_named_for_each_stage(tmp_path):
  file = tmp_path / "style.safetensors"
  stranger = "text_encoder.layers.0.q_proj"
  safetensors.save(file, published(64) | published(name=stranger))
  with pytest.raises(UserError) as error:
    apply_adapters([read_adapter(file)], STAGES, MODELS, 1.0)
  message = str(error.value)
  assert message.startswith(f"adapter={file} fits no stage of model: ")
  assert f"unet.{LAYER}.lora_A.weight (2, 64) instead of (2, 32)" in message
  assert f"unet.{LAYER}.lora_B.weight (64, 2) instead of (48, 2)" in message
  for half in "AB":
    assert message.count(f"{stranger}.lora_{half}.weight") == len(MODELS)
  assert "\n" not in message


def test_folders_without_one_adapter_are_refused(tmp_path):
  with pytest.raises(
    UserError, match=r"holds no adapter.safetensors, pytorch_"
  ):
    read_adapter(tmp_path)
  (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"pickle")
  for path in (tmp_path, tmp_path / "pytorch_lora_weights.bin"):
    with pytest.raises(UserError, match=r"pickled weights are not read"):
      read_adapter(path)
  for name in ("pytorch_lora_weights", "adapter_model"):
    safetensors.save(tmp_path / f"{name}.safetensors", published())
  with pytest.raises(
    UserError, match=r"weights.safetensors, adapter_model.saf"
  ):
    read_adapter(tmp_path)
