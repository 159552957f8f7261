"""LoRA of diffusers and PEFT: formats, alpha, unsupported adapters."""

import json
import math
import zlib

import ml_dtypes
import numpy as np
import pytest

from lumiere_jax.errors import UserError
from lumiere_jax.models import lora
from lumiere_jax.models.importers.lora_diffusers import (
  from_diffusers,
  misfits,
  read_layers,
  settings_of,
)
from lumiere_jax.models.importers.unet_diffusers import (
  tensor_names,
  to_diffusers,
)
from lumiere_jax.storage.safetensors import LazyArray
from tests.conftest import random_leaves, small_config

# Every kind of block, including layers that diffusers does not have.
CONFIG = small_config(in_channels=6, noise_conditioned=True, cond_channels=4)
FLAT = {k: np.asarray(v) for k, v in random_leaves(CONFIG).items()}
THEIRS = {k: np.asarray(v) for k, v in to_diffusers(FLAT, CONFIG).items()}

LAYERS = [
  name.removesuffix(".weight")
  for path, names in tensor_names(CONFIG).items()
  if path.endswith("/kernel")
  for name in names
]

ATTENTION = [m for m in LAYERS if ".attentions." in m]
QUERY = "mid_block.attentions.0.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
SKIP = "down_blocks.1.resnets.0.conv_shortcut"
RANK = 3


def lazily(tensors):
  return {
    name: LazyArray(x.shape, x.dtype, lambda x=x: x)
    for name, x in tensors.items()
  }


def halves(module, rank=RANK):
  """(down, up) that correct a layer, of the shapes PEFT gives them."""
  rng = np.random.default_rng(zlib.crc32(module.encode()))
  out, fan_in, *window = THEIRS[f"{module}.weight"].shape
  down = rng.normal(size=(rank, fan_in, *window))
  up = rng.normal(size=(out, rank, *(1 for _ in window)))
  return [x.astype(np.float32) for x in (down, up)]


def _spelling(form, halves):
  """Names of both halves of a layer in one of the formats."""
  return lambda module: [form.format(module, half) for half in halves]


peft = _spelling("unet.{}.lora_{}.weight", "AB")
bare = _spelling("{}.lora_{}.weight", "AB")
peft_folder = _spelling("base_model.model.{}.lora_{}.weight", "AB")
peft_named = _spelling("base_model.model.{}.lora_{}.default.weight", "AB")
down_and_up = _spelling("unet.{}.lora.{}.weight", ("down", "up"))
linear_layer = _spelling("unet.{}.lora_linear_layer.{}.weight", ("down", "up"))


def processor(module, prefix="unet."):
  attention, layer = module.removesuffix(".0").rsplit(".", 1)
  name = f"{prefix}{attention}.processor.{layer}_lora"
  return [f"{name}.{x}.weight" for x in ("down", "up")]


def file(modules, spell=peft, dtype=np.float32, rank=RANK):
  return {
    name: half.astype(dtype)
    for module in modules
    for name, half in zip(spell(module), halves(module, rank), strict=True)
  }


def read(tensors, settings=None):
  return read_layers(lazily(tensors), settings, "file")


def corrected(module, scale, rank=RANK, dtype=np.float32):
  """W + scale * up @ down, at every pixel of a window, in their layout."""
  down, up = (x.astype(dtype).astype(float) for x in halves(module, rank))
  change = np.einsum("or,ri...->oi...", up.reshape(-1, rank), down)
  return THEIRS[f"{module}.weight"] + scale * change


def check(tensors, scales, settings=None, rank=RANK, dtype=np.float32):
  """That the layers named are corrected by their scales, and only they."""
  adapter = from_diffusers(read(tensors, settings), CONFIG, "file")
  merged = lora.merge({**FLAT, **adapter})
  assert merged.keys() == FLAT.keys()
  for path in FLAT.keys() - tensor_names(CONFIG).keys():
    assert merged[path] is FLAT[path]
  for name, leaf in to_diffusers(merged, CONFIG).items():
    module = name.removesuffix(".weight")
    expected = THEIRS[name]
    if module in scales:
      expected = corrected(module, scales[module], rank, dtype)
    np.testing.assert_allclose(leaf, expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  "spell", [peft, bare, peft_named, down_and_up, linear_layer]
)
def test_every_layer_is_corrected(spell):
  check(file(LAYERS, spell), dict.fromkeys(LAYERS, 1.0))


@pytest.mark.parametrize(
  "spell", [processor, lambda module: processor(module, "")]
)
def test_every_layer_of_old_attention_processors_is_corrected(spell):
  tensors = file(ATTENTION, spell)
  assert any(".processor.add_k_proj_lora.down" in name for name in tensors)
  assert any(".processor.to_out_lora.up" in name for name in tensors)
  check(tensors, dict.fromkeys(ATTENTION, 1.0))


@pytest.mark.parametrize("module", [CONV, SKIP, QUERY, "conv_in", "conv_out"])
def test_single_layers(module):
  check(file([module]), {module: 1.0})


@pytest.mark.parametrize("layer", ["to_q", "to_k", "to_v"])
def test_a_part_of_a_kernel_reaches_its_own_slice(layer):
  module = f"mid_block.attentions.0.{layer}"
  adapter = from_diffusers(read(file([module])), CONFIG, "file")
  path = "lora/mid_attention/qkv/kernel"
  assert adapter.keys() == {f"{path}/a", f"{path}/b"}
  assert adapter[f"{path}/a"].shape == (32, RANK)
  number = ("to_q", "to_k", "to_v").index(layer)
  others = np.delete(adapter[f"{path}/b"], number, axis=1)
  assert not others.any()
  check(file([module]), {module: 1.0})


def test_parts_of_a_kernel_may_differ_in_rank():
  key, value = (f"mid_block.attentions.0.add_{x}_proj" for x in "kv")
  tensors = file([key], rank=2) | file([value], rank=5)
  adapter = from_diffusers(read(tensors), CONFIG, "file")
  path = "mid_attention/text_kv/kernel"
  assert adapter[f"lora/{path}/a"].shape[-1] == 7
  merged = to_diffusers(lora.merge({**FLAT, **adapter}), CONFIG)
  for module, rank in ((key, 2), (value, 5)):
    expected = corrected(module, 1.0, rank)
    np.testing.assert_allclose(merged[f"{module}.weight"], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(dtype):
  adapter = from_diffusers(read(file([QUERY], dtype=dtype)), CONFIG, "file")
  assert {x.dtype for x in adapter.values()} == {np.dtype(np.float32)}
  check(file([QUERY, CONV], dtype=dtype), {QUERY: 1, CONV: 1}, dtype=dtype)


@pytest.mark.parametrize(
  ("spell", "ending"),
  [
    (peft, ".alpha"),
    (peft, ".network_alpha"),
    (peft, ".lora_A.alpha"),
    (down_and_up, ".lora.alpha"),
    (down_and_up, ".lora.network_alpha"),
    (down_and_up, ".lora.down.weight.alpha"),
  ],
)
def test_alpha_of_a_layer_is_a_tensor(spell, ending):
  alpha = {f"unet.{QUERY}{ending}": np.float32(1.5).reshape(1)}
  tensors = file([QUERY, CONV], spell) | alpha
  check(tensors, {QUERY: 1.5 / RANK, CONV: 1.0})


def test_alpha_of_a_processor_is_a_tensor():
  stem = "unet.mid_block.attentions.0.processor.to_out_lora"
  module = "mid_block.attentions.0.to_out.0"
  for ending in (".alpha", ".network_alpha", ".down.weight.alpha"):
    tensors = file([module], processor) | {stem + ending: np.float16(6)}
    check(tensors, {module: 2.0})


def settings(**changes):
  """The parts of a PEFT config that it always writes."""
  return {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 6,
    "init_lora_weights": True,
    "bias": "none",
    "lora_dropout": 0.1,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "target_modules": ["to_q"],
    "use_dora": False,
    "loftq_config": {},
  } | changes


@pytest.mark.parametrize(
  ("changes", "query", "conv"),
  [
    ({}, 2, 2),
    ({"use_rslora": True}, 6 / math.sqrt(RANK), 6 / math.sqrt(RANK)),
    ({"alpha_pattern": {"to_q": 1}}, 1 / RANK, 2),
    ({"alpha_pattern": {"conv": 9, r"resnets\.\d.conv1": 1}}, 2, 1 / RANK),
    ({"alpha_pattern": {"^to_q": 9, f"^{CONV}": 1.5}}, 2, 0.5),
    ({"r": 8, "rank_pattern": {"to_q": RANK, "conv1": RANK}}, 2, 2),
    ({"init_lora_weights": "gaussian", "lora_alpha": 0.0}, 0, 0),
  ],
)
def test_a_peft_config_states_alpha(changes, query, conv):
  tensors = file([QUERY, CONV], peft_folder)
  check(tensors, {QUERY: query, CONV: conv}, settings(**changes))


def in_json(content):
  return {"lora_adapter_metadata": json.dumps(content)}


@pytest.mark.parametrize(
  "header",
  [
    {"unet.lora_alpha": "6", "unet.r": "3", "text_encoder.lora_alpha": "9"},
    {"lora_alpha": "6.0", "title": "alpha", "modelspec.title": "a"},
    {"network_alpha": "6", "network_dim": "3", "use_dora": "False"},
    {"LoRA-Alpha": "6", "alphabet": "a", "ss_network_args": '{"algo": "lora"}'},
    {"alpha": "6", "rank": "3", "unet.modules_to_save": "None"},
    {"ss_network_alpha": "6", "ss_network_dim": "3", "ss_lr_scale": "2"},
    in_json({"unet.lora_alpha": 6, "unet.r": RANK, "text_encoder.r": 5}),
    in_json({"lora_alpha": 6}) | {"unet.lora_alpha": "6"},
    in_json({"text_encoder.r": 5, "text_encoder.lora_alpha": 5})
    | {"lora_alpha": "6"},
    {"lora_alpha": str(2 * math.sqrt(RANK)), "use_rslora": "true"},
    {"r": "3", "lora_alpha": "9", "alpha_pattern": '{"to_q|conv1": 6}'},
  ],
)
def test_the_header_states_alpha_in_every_dialect(header):
  found = settings_of({"format": "pt", **header}, "file")
  check(file([QUERY, CONV]), {QUERY: 2, CONV: 2}, found)


def test_headers_without_alpha_have_the_rank():
  for header in ({}, {"r": "3"}, {"ss_network_alpha": "None"}, in_json({})):
    check(file([QUERY]), {QUERY: 1}, settings_of(header, "file"))
  check(file([QUERY]), {QUERY: 8 / RANK}, settings_of(in_json({"r": 3}), "x"))


def test_alpha_tensors_win_over_what_kohya_records():
  """Its resized files say "Dynamic" there; others record another alpha."""
  header = {"ss_network_dim": "Dynamic", "ss_network_alpha": "1"}
  header["ss_network_args"] = '{"conv_alpha": "1"}'
  tensors = file([QUERY]) | {f"{QUERY}.alpha": np.float32(6)}
  check(tensors, {QUERY: 2}, settings_of(header, "x", alpha_tensors=True))
  with pytest.raises(UserError, match=r"'Dynamic'|conv_alpha"):
    read(file([QUERY]), settings_of(header, "file"))


@pytest.mark.parametrize(
  ("header", "words"),
  [
    (in_json(3), "file: lora_adapter_metadata"),
    ({"lora_adapter_metadata": "{"}, "file: lora_adapter_metadata"),
    ({"lora_adapter_metadata": "[1]"}, "file: lora_adapter_metadata"),
    ({"unet.lora_alpha": "6", "lora_alpha": "3"}, "given twice, as 6 and 3"),
    (in_json({"lora_alpha": 6}) | {"alpha": "3"}, "given twice, as 6 and 3"),
    ({"unet.r": "4"}, rf"{QUERY} 3 instead of 4"),
    ({"ss_network_dim": "8", "ss_network_alpha": "1"}, "3 instead of 8"),
    ({"ss_network_args": '{"conv_alpha": "1"}'}, "conv_alpha=1"),
    ({"ss_network_args": '{"rs_lora": true}'}, "rs_lora="),
    ({"loraAlpha": "16"}, "loraalpha=16"),
    ({"lora_alpha": "many"}, "lora_alpha .* is malformed"),
    ({"use_rslora": "True"}, "lora_alpha .* is malformed"),
    ({"lora_alpha": "NaN"}, "not a finite number"),
    ({"use_dora": "True"}, "use_dora=True"),
    ({"unet.lora_scale": "0.5"}, "lora_scale=0.5"),
    ({"lora_config": '{"alpha": 3}'}, "lora_config="),
    ({f"{QUERY}.alpha": "3"}, "alpha=3"),
    (in_json({"use_dora": True, "r": 3}), "use_dora=True"),
  ],
)
def test_headers_that_cannot_be_honoured_are_refused(header, words):
  with pytest.raises(UserError, match=words):
    read(file([QUERY]), settings_of(header, "file"))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"use_dora": True}, "use_dora=True"),
    ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ({"lora_bias": True}, "lora_bias=True"),
    ({"modules_to_save": ["conv_in"]}, "modules_to_save="),
    ({"of_the_future": 1}, "of_the_future=1"),
    ({"r": 4}, rf"{QUERY} 3 instead of 4"),
    ({"rank_pattern": {"to_q": 2}}, rf"{QUERY} 3 instead of 2"),
    ({"bias": "lora_only"}, "bias='lora_only'"),
    ({"lora_alpha": "many"}, "lora_alpha of its PEFT .* is malformed"),
    ({"alpha_pattern": {"(": 1}}, "alpha_pattern or lora_alpha of its PEFT"),
    ({"rank_pattern": [1]}, "rank_pattern or r of its PEFT"),
    ({"lora_alpha": float("nan")}, rf"not a finite number \({QUERY}"),
  ],
)
def test_unsupported_peft_configs(changes, words):
  with pytest.raises(UserError, match=words) as error:
    read(file([QUERY]), settings(**changes))
  assert error.value.field == "file:"


STRAY = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    (f"unet.{QUERY}.lora_magnitude_vector", "but of a DoRA "),
    (f"unet.{QUERY}.lora_magnitude_vector.weight", "but of a DoRA "),
    (f"unet.{QUERY}.dora_scale", "but of a DoRA "),
    (f"unet.{QUERY}.lora_B.bias", "but of a LoRA with biases "),
    (f"unet.{QUERY}.hada_w1_a", "but of a LoHa "),
    (f"unet.{QUERY}.lokr_w1", "but of a LoKr "),
    (f"unet.{QUERY}.weight", ""),
    ("lora_unet_mid_block_attentions_0_to_q.lora_down.weight", ""),
    ("lora/mid_attention/qkv/kernel/a", ""),
  ],
)
def test_other_kinds_of_adapters_are_refused(name, kind):
  words = rf"1 tensor is not part of a plain LoRA {kind}\("
  with pytest.raises(UserError, match=words) as error:
    read(file([QUERY]) | {name: STRAY})
  assert name in str(error.value)


@pytest.mark.parametrize(
  ("extra", "words"),
  [
    ({f"unet.{CONV}.lora_A.weight": STRAY}, "1 tensor is present without the"),
    ({f"unet.{CONV}.alpha": np.float32(1)}, "1 tensor is present without the"),
    (file([QUERY], bare), "2 tensors are duplicated under another name"),
    ({f"{QUERY}.alpha": STRAY}, "1 tensor is not a single number"),
    (
      {f"unet.{QUERY}.lora_A.weight": np.zeros((3, 32), np.int8)},
      r"1 tensor is not float16.*lora_A.weight int8\)",
    ),
    (
      {f"unet.{QUERY}.lora_A.weight": np.zeros((4, 32), np.float32)},
      r"2 tensors are of incompatible shapes .*\(4, 32\).*\(32, 3\)",
    ),
    (
      {f"unet.{QUERY}.lora_A.weight": np.zeros(3, np.float32)},
      r"2 tensors are of incompatible shapes",
    ),
    ({f"unet.{QUERY}.alpha": np.float32(np.inf)}, "not a finite number"),
  ],
)
def test_broken_tensors_are_named(extra, words):
  with pytest.raises(UserError, match=words) as error:
    read(file([QUERY]) | extra)
  assert QUERY in str(error.value) or CONV in str(error.value)


def test_alpha_may_be_stated_once_only():
  tensors = file([QUERY]) | {f"unet.{QUERY}.alpha": np.float32(1)}
  with pytest.raises(UserError, match=r"given twice.*to_q\.alpha"):
    read(tensors, settings())
  with pytest.raises(UserError, match="holds no tensors"):
    read({})


def test_layers_of_another_model_are_all_named():
  text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
  strangers = ["mid_block.attentions.7.to_q", text]
  names = [f"unet.{strangers[0]}.lora_A.weight", f"{text}.lora_A.weight"]
  tensors = file([QUERY, CONV])
  for name in names:
    up = name.replace("lora_A", "lora_B")
    tensors |= {name: np.ones((2, 5), np.float32), up: np.ones((5, 2), "f4")}
  wrong = f"unet.{QUERY}.lora_A.weight"
  tensors[wrong] = np.ones((RANK, 31), np.float32)
  pixel = f"unet.{CONV}.lora_B.weight"
  tensors[pixel] = tensors[pixel][..., 0, 0]
  layers = read(tensors)
  told = misfits(layers, CONFIG)
  with pytest.raises(UserError) as error:
    from_diffusers(layers, CONFIG, "file")
  assert f"file: {told}" in str(error.value)
  assert "4 tensors are of unknown layers" in told
  assert all(name in told for name in names)
  assert "2 tensors are of the wrong shape" in told
  assert f"{wrong} (3, 31) instead of (3, 32)" in told
  assert f"{pixel} (16, 3) instead of (16, 3, 1, 1)" in told


def test_what_fits_has_no_misfits():
  assert misfits(read(file(LAYERS)), CONFIG) == ""
