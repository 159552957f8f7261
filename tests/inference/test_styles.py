"""Styles: spatial leaves are interpolated exactly, all others are kept."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.inference.styles import (
  check_alpha,
  interpolate_style,
  parse_alphas,
  read_style,
  spatial,
  styled,
)
from lumiere_jax.models import lora
from lumiere_jax.models.config import TemporalConfig
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.safetensors import LazyArray
from tests.conftest import small_config
from tests.inference.test_adapters import PATH, published, write

TEMPORAL = TemporalConfig(
  resample=(True,), num_attentions=1, head_dim=8, max_distance=32
)

IMAGE = small_config(
  channels=(16, 32),
  num_res_blocks=(1, 1),
  attention=("none", "self"),
  temporal=None,
)

UPSCALER = dataclasses.replace(
  IMAGE, channels=(16, 24), in_channels=6, noise_conditioned=True
)

MODELS = {
  "t2i": IMAGE,
  "base": dataclasses.replace(IMAGE, temporal=TEMPORAL),
  "conditional": dataclasses.replace(IMAGE, temporal=TEMPORAL, cond_channels=4),
  "ssr_image": UPSCALER,
  "ssr": dataclasses.replace(UPSCALER, temporal=TEMPORAL),
}


def is_added(path):
  return path.startswith(("temporal_", "cond_in"))


def drawn(model, seed):
  """Every leaf random, temporal ones and those that start at zero too."""
  rng = np.random.default_rng(seed)
  return {
    path: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
    for path, leaf in abstract_params(model).items()
  }


ORIGINAL = drawn(IMAGE, 0)
STYLED = drawn(IMAGE, 1)
UPSCALING = drawn(UPSCALER, 2)

WEIGHTS = {
  "t2i": ORIGINAL,
  "base": drawn(MODELS["base"], 3) | ORIGINAL,
  "conditional": drawn(MODELS["conditional"], 4) | ORIGINAL,
  "ssr": drawn(MODELS["ssr"], 5) | UPSCALING,
}


def write_bundle(folder, **stages):
  """A bundle of weights alone, each in two files as a run writes them."""
  folder.mkdir(exist_ok=True)
  parts = {}
  for stage, flat in stages.items():
    files = [f"{stage}-{half}.safetensors" for half in "ab"]
    for k, file in enumerate(files):
      safetensors.save(folder / file, dict(list(flat.items())[k::2]))
    parts[stage] = bundles.Part(meta={}, tensors=tuple(files))
  bundles.write(folder, parts, {})
  return folder


def make_adapter(target="spatial", flat=ORIGINAL, seed=3):
  """An adapter that changes something: B is not zero."""
  fresh = lora.init_adapter(flat, target, 2, jax.random.key(0))
  rng = np.random.default_rng(seed)
  draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  return {k: draw(v) for k, v in fresh.items()}


def assert_same(got, expected):
  """Bit for bit, which tells zeros by their sign too."""
  assert got.keys() == expected.keys()
  for path, leaf in expected.items():
    assert got[path].dtype == leaf.dtype, path
    one, other = np.asarray(got[path]), np.asarray(leaf)
    assert one.tobytes() == other.tobytes(), path


def assert_added_kept(got, original):
  added = {k: v for k, v in original.items() if is_added(k)}
  assert added
  assert_same({k: v for k, v in got.items() if is_added(k)}, added)


KINDS = {
  "numpy": np.asarray,
  "jax": jnp.asarray,
  "bfloat16": lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16),
  "float16": lambda leaf: np.asarray(leaf).astype(np.float16),
  "lazy": lambda leaf: LazyArray(leaf.shape, leaf.dtype, lambda: leaf),
}


def of_kind(kind, flat):
  return {path: KINDS[kind](leaf) for path, leaf in flat.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_are_exact(kind):
  tricky = {"a": np.float32([-0.0, 1e-30, 1 / 3]), "temporal_a": np.ones(1)}
  other = {"a": np.float32([1 / 7, -0.0, 1e4])}
  for before, after in (
    (tricky, other),
    (other | {"cond_in/kernel": np.ones(1)}, {"a": tricky["a"]}),
    (WEIGHTS["conditional"], STYLED),
  ):
    before, after = of_kind(kind, before), of_kind(kind, after)
    assert_same(interpolate_style(before, after, 0.0), before)
    added = {k: v for k, v in before.items() if is_added(k)}
    assert_same(interpolate_style(before, after, 1.0), before | after)
    assert_same(interpolate_style(before, after | added, 1.0), before | after)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9, 1.2])
def test_it_is_linear_in_the_spatial_leaves_alone(alpha):
  original = WEIGHTS["base"]
  got = interpolate_style(original, STYLED, alpha)
  assert_added_kept(got, original)
  for path, leaf in STYLED.items():
    expected = original[path] + alpha * (leaf.astype(float) - original[path])
    np.testing.assert_allclose(got[path], expected, atol=1e-6)
    assert got[path].dtype == np.float32
  assert_same(WEIGHTS["base"], original)  # the input is unchanged


def test_sums_are_float32_and_in_the_precision_of_the_original():
  """0.9 of the way from 2048 to 2054 is 2053.4, nearest to 2054 in float16;
  summed in float16 it would be 2052."""
  original = {"a": np.float16([2048]), "b": np.float16([1])}
  style = {"a": np.float32([2054]), "b": np.float32([1 + 2**-12])}
  got = interpolate_style(original, style, 0.9)
  assert {leaf.dtype for leaf in got.values()} == {np.dtype(np.float16)}
  assert got["a"] == 2054
  half = np.float16
  assert half(0.9) * half(2054) + half(0.1) * half(2048) == 2052
  assert interpolate_style(original, style, 1.0)["b"] == 1


def test_devices_and_hosts_agree_and_lazy_stays_lazy():
  expected = interpolate_style(WEIGHTS["base"], STYLED, 0.3)
  made = []

  def make(path):
    made.append(path)
    return WEIGHTS["base"][path]

  lazy = {
    path: LazyArray(leaf.shape, leaf.dtype, lambda path=path: make(path))
    for path, leaf in WEIGHTS["base"].items()
  }
  got = interpolate_style(lazy, of_kind("lazy", STYLED), 0.3)
  assert not made
  assert all(isinstance(leaf, LazyArray) for leaf in got.values())
  assert_same(got, expected)
  for before, after in (("jax", "numpy"), ("jax", "lazy"), ("numpy", "jax")):
    got = interpolate_style(
      of_kind(before, WEIGHTS["base"]), of_kind(after, STYLED), 0.3
    )
    on_devices = {isinstance(leaf, jax.Array) for leaf in got.values()}
    assert on_devices == {before == "jax"}
    assert_same(got, expected)


def test_another_architecture_is_refused_by_leaf():
  other = {k: v for k, v in STYLED.items() if k != PATH}
  other["mid_7/kernel"] = np.zeros(3)
  other["head/kernel"] = np.zeros((1, 1))
  with pytest.raises(UserError) as error:
    interpolate_style(WEIGHTS["base"], other, 0.5, "style=x")
  message = str(error.value)
  for words in (
    "style=x was made with another config.model",
    f"{PATH} is missing",
    "mid_7/kernel is unexpected",
    "head/kernel is 1x1",
  ):
    assert words in message
  assert "temporal_" not in message and "\n" not in message


def test_a_fine_tuned_model_styles_every_stage_it_fits(tmp_path):
  style = read_style(write_bundle(tmp_path / "t2i", t2i=STYLED))
  assert style.slot == "base"
  assert all(isinstance(leaf, LazyArray) for leaf in style.leaves.values())
  got = styled(WEIGHTS, MODELS, style, 0.5)
  assert got["ssr"] is WEIGHTS["ssr"]
  for stage in ("t2i", "base", "conditional"):
    assert_same(got[stage], interpolate_style(WEIGHTS[stage], STYLED, 0.5))
  assert_same(styled(WEIGHTS, MODELS, style, 0.0)["base"], WEIGHTS["base"])
  whole = styled(WEIGHTS, MODELS, style, 1.0)["conditional"]
  assert_same(spatial(whole), STYLED)


@pytest.mark.parametrize("stage", ["base", "conditional"])
def test_of_a_video_model_the_spatial_leaves_are_the_style(tmp_path, stage):
  fine_tuned = drawn(MODELS[stage], 8) | STYLED
  style = read_style(write_bundle(tmp_path, **{stage: fine_tuned}))
  assert not any(map(is_added, style.leaves))
  got = styled(WEIGHTS, MODELS, style, 1.0)["base"]
  assert_added_kept(got, WEIGHTS["base"])
  assert_same(spatial(got), STYLED)


def test_super_resolution_has_a_style_of_its_own(tmp_path):
  upscaling = drawn(UPSCALER, 9)
  folder = write_bundle(tmp_path, t2i=STYLED, ssr_image=upscaling)
  with pytest.raises(UserError, match=rf"t2i, ssr_image; .*t2i={folder}"):
    read_style(folder)
  style = read_style(f"ssr_image={folder}")
  assert style.slot == "ssr"
  got = styled(WEIGHTS, MODELS, style, 1.0)
  assert_same(spatial(got["ssr"]), upscaling)
  assert_added_kept(got["ssr"], WEIGHTS["ssr"])
  assert got["base"] is WEIGHTS["base"]
  style = read_style(f"t2i={folder}")
  assert_same(styled(WEIGHTS, MODELS, style, 1.0)["t2i"], STYLED)
  only = {"ssr": WEIGHTS["ssr"]}
  words = "is for t2i or base or conditional, model holds ssr; give"
  with pytest.raises(UserError, match=words):
    styled(only, MODELS, style, 1.0)


def test_a_style_of_another_network_is_refused(tmp_path):
  wide = dataclasses.replace(IMAGE, channels=(16, 48))
  style = read_style(write_bundle(tmp_path / "wide", t2i=drawn(wide, 0)))
  with pytest.raises(UserError, match=r"style=.*wide.* is 48x32 instead of"):
    styled(WEIGHTS, MODELS, style, 0.5)
  mixed = WEIGHTS | {"t2i": drawn(wide, 1)}
  with pytest.warns(UserWarning, match="base keeps its own style: sty"):
    got = styled({k: mixed[k] for k in ("t2i", "base")}, MODELS, style, 1.0)
  assert_same(got["t2i"], drawn(wide, 0))
  assert got["base"] is WEIGHTS["base"]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.3])
def test_an_adapter_scaled_is_the_interpolation(tmp_path, alpha):
  """W + alpha A B = alpha (W + A B) + (1 - alpha) W; and no warning: the base
  holds the very leaves it was trained on."""
  adapter = make_adapter()
  merged = lora.merge({**ORIGINAL, **adapter})
  style = read_style(write(tmp_path, adapter, "t2i", ORIGINAL))
  assert style.slot == "base"
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "alpha=1.3 is above 1")
    got = styled(WEIGHTS, MODELS, style, alpha)
  assert got["ssr"] is WEIGHTS["ssr"]
  for stage in ("t2i", "base", "conditional"):
    expected = interpolate_style(WEIGHTS[stage], merged, alpha)
    assert got[stage].keys() == expected.keys()
    for path, leaf in expected.items():
      np.testing.assert_allclose(got[stage][path], leaf, atol=1e-6)
  assert_added_kept(got["base"], WEIGHTS["base"])
  if not alpha:
    assert_same(got["base"], WEIGHTS["base"])
  if alpha == 1:
    assert_same(got["t2i"], merged)


def test_an_adapter_on_other_weights_is_merged_with_a_warning(tmp_path):
  adapter = make_adapter()
  style = read_style(write(tmp_path, adapter, "t2i", STYLED))
  words = "trained on the t2i of 'out/t2i', and the base of model holds other"
  with pytest.warns(UserWarning, match=words):
    got = styled({"base": WEIGHTS["base"]}, MODELS, style, 1.0)["base"]
  assert_same(got, lora.merge({**WEIGHTS["base"], **adapter}))


def test_an_adapter_of_the_base_knows_the_base(tmp_path):
  """Its fingerprint is of all leaves; only its spatial part is a style."""
  base = WEIGHTS["base"]
  adapter = make_adapter(".*", base)
  style = read_style(write(tmp_path, adapter, "base", base))
  got = styled({"base": base}, MODELS, style, 1.0)["base"]
  assert_added_kept(got, base)
  expected = lora.merge({**base, **spatial(adapter)})
  assert_same(got, expected)
  time = make_adapter("temporal", base)
  write(tmp_path, time, "base", base)
  with pytest.raises(UserError, match="adapts no spatial layers"):
    read_style(tmp_path)


def test_an_adapter_of_another_network_is_refused(tmp_path):
  wide = drawn(dataclasses.replace(IMAGE, channels=(16, 48)), 0)
  adapter = make_adapter(flat=wide)
  style = read_style(write(tmp_path, adapter, "t2i", wide))
  with pytest.raises(UserError, match=r"style=.*/kernel of another shape"):
    styled(WEIGHTS, MODELS, style, 1.0)


def test_a_published_adapter_is_a_style_where_it_fits(tmp_path):
  for width, stages in ((32, ("t2i", "base", "conditional")), (24, ("ssr",))):
    file = tmp_path / f"{width}.safetensors"
    safetensors.save(file, published(width))
    got = styled(WEIGHTS, MODELS, read_style(file), 0.5)
    for stage, flat in WEIGHTS.items():
      change = {PATH: flat[PATH] + 1} if stage in stages else {}
      expected = flat | change
      assert got[stage].keys() == flat.keys()
      for path, leaf in expected.items():
        np.testing.assert_allclose(got[stage][path], leaf, atol=1e-6)


def test_where_a_published_adapter_fits_two_slots_one_must_be_named(tmp_path):
  file = tmp_path / "style.safetensors"
  safetensors.save(file, published())
  both = {"base": WEIGHTS["base"], "ssr": WEIGHTS["base"]}
  models = {"base": MODELS["base"], "ssr": MODELS["base"]}
  words = rf"fits the stages base, ssr; say which, as style=base={file}"
  with pytest.raises(UserError, match=words):
    styled(both, models, read_style(file), 1.0)
  got = styled(both, models, read_style(f"ssr={file}"), 1.0)
  assert got["base"] is both["base"]
  assert (got["ssr"][PATH] == both["ssr"][PATH] + 2).all()
  safetensors.save(file, published(64))
  with pytest.raises(UserError) as error:
    styled(WEIGHTS, MODELS, read_style(file), 1.0)
  for stage in ("t2i", "ssr"):
    words = f"style={file} on stage '{stage}': 2 tensors are of the wrong sh"
    assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_what_is_no_style_is_named(tmp_path):
  write_bundle(tmp_path / "text", text={"a": np.ones(2)})
  write_bundle(tmp_path / "t2i", t2i=STYLED)
  safetensors.save(tmp_path / "odd.safetensors", {"x": np.ones(2)})
  write(tmp_path / "adapter", make_adapter(), "t2i", ORIGINAL)
  (tmp_path / "pickled").mkdir()
  (tmp_path / "pickled" / "pytorch_lora_weights.bin").write_bytes(b"pickle")
  for stage, name, words in (
    ("", "gone", r"style=.*gone does not exist; give a bundle"),
    ("", ".", r"style=.* has no bundle.json; give a bundle"),
    ("tti=", ".", "there is no stage 'tti'; name one of t"),
    ("", "text", "holds no stage; give a fine-tuned t2i "),
    ("ssr=", "t2i", "holds t2i; give a fine-tuned ssr"),
    ("", "odd.safetensors", r"style=.*part of a plain LoRA"),
    ("ssr=", "adapter", "was trained for stage 't2i'; give it a"),
    ("", "pickled", "pickled weights are not read"),
  ):
    with pytest.raises(UserError, match=words):
      read_style(f"{stage}{tmp_path / name}")


@pytest.mark.parametrize("alpha", [-0.01, 1.51, float("nan"), float("inf")])
def test_alphas_out_of_range_are_refused(tmp_path, alpha):
  style = read_style(write_bundle(tmp_path / "t2i", t2i=STYLED))
  with pytest.raises(UserError, match=r"alpha=\S+ is not in \[0, 1.5\]"):
    styled(WEIGHTS, MODELS, style, alpha)


def test_more_than_all_of_a_style_is_warned_of():
  for alpha in (0, 0.5, 1):
    check_alpha(alpha)
  with pytest.warns(UserWarning, match=r"a=1.5 is above 1"):
    check_alpha(1.5, "a")


def test_alphas_are_numbers_with_commas():
  assert parse_alphas("0,0.25, 0.5") == (0.0, 0.25, 0.5)
  assert parse_alphas("1") == (1.0,)
  for text in ("", "0,", "0;1", "half", "0,nan", "-1,0", "2"):
    with pytest.raises(UserError, match=r"^alphas=.*$"):
      parse_alphas(text)
