"""Conversion of weights, on small stand-ins for DeepFloyd IF and T5."""

import dataclasses
import errno
import functools
import json
import pathlib
import pickle
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, common, ssr, t2i
from lumiere_jax.conversion import diffusers, lazy_stage
from lumiere_jax.conversion.convert import Conversion, add_parts, convert
from lumiere_jax.conversion.lazy_stage import LazyStage
from lumiere_jax.errors import UserError
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.inference.settings import Settings
from lumiere_jax.models.importers.unet_diffusers import to_diffusers
from lumiere_jax.models.importers.unet_diffusers_config import (
  config_from_diffusers,
)
from lumiere_jax.models.params import unflatten
from lumiere_jax.models.unet import UNet
from lumiere_jax.stages.config import DiffusionConfig, StageConfig, VideoConfig
from lumiere_jax.storage import bundle as bundles
from lumiere_jax.storage import safetensors
from lumiere_jax.training.config import TextConfig
from lumiere_jax.typing import Cond
from tests.references import unets
from tests.stand_ins import random_leaves, write_all

WEIGHTS = "diffusion_pytorch_model.safetensors"


def run(source, src, out, **options):
  src = [src] if isinstance(src, str | pathlib.Path) else src
  options = {"target": "bundle"} | options
  convert(
    Conversion(source=source, src=tuple(map(str, src)), out=str(out), **options)
  )
  return out


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
  folder = tmp_path_factory.mktemp("stand_ins")
  write_all(folder)
  return folder


@pytest.fixture
def broken(stand_ins, tmp_path):
  """A copy of IF-I that a test may break."""
  return pathlib.Path(shutil.copytree(stand_ins / "IF-I", tmp_path / "IF-I"))


@pytest.fixture(scope="module")
def bundle(stand_ins, tmp_path_factory):
  """All three in one bundle."""
  out = tmp_path_factory.mktemp("bundle") / "if"
  run("diffusers", stand_ins / "IF-I", out, licence="mine")
  run("diffusers", stand_ins / "IF-II" / "unet", out)
  text = TextConfig(cleaning="if")
  run("t5", stand_ins / "T5", out, text=text)
  return bundles.open_bundle(out)


def test_three_conversions_make_one_bundle(bundle):
  assert set(bundle.parts) == {"t2i", "ssr_image", "text"}
  assert bundle.parts["t2i"].meta["licence"] == "mine"
  assert bundle.parts["t2i"].meta["video"]["resolution"] == [16, 16]
  assert bundle.parts["ssr_image"].meta["video"]["upscale"] == 4
  assert bundle.parts["text"].meta["cleaning"] == "if"
  for stage in ("t2i", "ssr_image"):  # in the dtype of the source
    leaves = bundle.leaves(stage).values()
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float16)}


def check_same(found, expected):
  """Two flat dicts of arrays are bit-identical."""
  assert found.keys() == expected.keys()
  for name, leaf in found.items():
    assert leaf.dtype == expected[name].dtype
    np.testing.assert_array_equal(leaf, expected[name])


def test_earlier_bundles_win(stand_ins, bundle, tmp_path):
  first = run("diffusers", stand_ins / "IF-I", tmp_path / "a", licence="first")
  out = run("bundle", [first, bundle.folder], tmp_path / "both")
  both = bundles.open_bundle(out)
  assert set(both.parts) == {"t2i", "ssr_image", "text"}
  assert both.parts["t2i"].meta["licence"] == "first"
  (file,) = both.parts["ssr_image"].tensors
  assert (out / file).samefile(bundle.folder / file)  # a hard link


def test_model_card(stand_ins, bundle, tmp_path):
  out = run("bundle", bundle.folder, tmp_path / "bundle")
  card = out / "README.md"
  text = card.read_text()
  for part in ("t2i | pictures of 16x16", "| mine |", "T5 v1.1, 64 wide"):
    assert part in text
  run("diffusers", stand_ins / "IF-I", out, licence="another")
  assert "| another |" in card.read_text()
  again = bundles.open_bundle(out)  # with one part replaced
  assert set(again.parts) == set(bundle.parts)
  assert again.parts["t2i"].meta["licence"] == "another"
  named = {f for part in again.parts.values() for f in part.tensors}
  assert {f.name for f in out.glob("*.safetensors")} == named
  card.write_text("my own words")
  run("diffusers", stand_ins / "IF-I", out)
  assert card.read_text() == "my own words"


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("shards", [False, True])
def test_round_trip_is_bit_identical(
  stand_ins, tmp_path, monkeypatch, variant, shards
):
  folder = shutil.copytree(stand_ins / "IF-II", tmp_path / "IF-II")
  if variant:
    file = folder / "unet" / WEIGHTS
    file.rename(file.with_suffix(".fp16.safetensors"))
  if shards:
    monkeypatch.setattr(diffusers, "SHARD_BYTES", 300_000)
  run("diffusers", folder, tmp_path / "bundle", variant=variant)
  out = run("bundle", tmp_path / "bundle", tmp_path / "out", target="diffusers")
  assert len([*out.glob("unet/*.safetensors")]) > 3 * shards
  original = safetensors.load(stand_ins / "IF-II" / "unet" / WEIGHTS)
  again = diffusers.open_weights(out / "unet", diffusers.STEM)
  check_same(again, original)
  read = lambda f, *path: json.loads(f.joinpath(*path).read_text())
  for path in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
    assert read(out, *path) == read(stand_ins / "IF-II", *path)


@pytest.mark.parametrize("target", ["bundle", "diffusers"])
def test_peak_memory_is_a_few_tensors(tmp_path, target):
  config = unets.IF_II
  model = config_from_diffusers(config, "config.json")
  tensors = to_diffusers(random_leaves(model, 0, np.float32), model)
  sizes = [tensor.nbytes for tensor in tensors.values()]
  unets.write_folder(tmp_path / "IF-II", config, tensors)
  source, src = "diffusers", tmp_path / "IF-II"
  if target == "diffusers":
    src = run(source, src, tmp_path / "bundle")
    source = "bundle"
  del tensors
  run(source, src, tmp_path / "first", target=target)  # fills caches
  tracemalloc.start()
  run(source, src, tmp_path / "second", target=target)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  print(f"{peak / max(sizes):.1f} of the largest tensor")
  assert sum(sizes) > 10 * max(sizes)
  assert max(sizes) < peak < 5 * max(sizes)


def test_copies_of_bundles_are_bit_identical(bundle, tmp_path):
  run("bundle", bundle.folder, tmp_path / "linked")
  run("bundle", bundle.folder, tmp_path / "written", stage="t2i")
  for name, parts in (
    ("linked", {*bundle.parts}),
    ("written", {"t2i", "text"}),
  ):
    other = bundles.open_bundle(tmp_path / name)
    assert set(other.parts) == parts
    for part in parts:
      check_same(other.load(part), bundle.load(part))


def apply(config, params, z, cond):
  network = jax.jit(UNet(config).apply)
  time = jnp.full(len(z), 0.4)
  return np.asarray(network({"params": unflatten(params)}, z, time, cond))


@pytest.fixture(scope="module")
def inflate(stand_ins, tmp_path_factory):
  """The bundle of an inflated model; made once for each source."""

  @functools.cache
  def made(source, experiment, again=False):
    out = tmp_path_factory.mktemp("inflated")
    return run("diffusers", stand_ins / source, out, temporal=experiment)

  return made


@pytest.mark.parametrize(
  ("source", "experiment", "stage"),
  [("IF-I", base.IF_TINY, "base"), ("IF-II", ssr.IF_TINY, "ssr")],
)
def test_inflated_model_equals_the_image_model_frame_by_frame(
  inflate, source, experiment, stage
):
  """On a video that is constant in time, because time is resampled."""
  made = bundles.open_bundle(inflate(source, experiment))
  video = made.parts[stage].meta["video"]
  assert video["num_frames"] == experiment.data.num_frames
  params, model = made.load(stage), experiment.network
  assert {"temporal_" in path for path in params} == {True, False}
  rng = np.random.default_rng(0)
  frame = rng.standard_normal((1, 1, 8, 8, model.in_channels), np.float32)
  text = rng.standard_normal((1, 5, model.text_dim), np.float32)
  constant = np.repeat(frame, 4, axis=1)
  cond = lambda x: Cond(
    text=text, frames=x[..., 3:], noise_level=np.float32([0.2])
  )
  inflated = apply(model, params, constant[..., :3], cond(constant))
  image = dataclasses.replace(model, temporal=None)
  spatial = {k: v for k, v in params.items() if "temporal_" not in k}
  alone = apply(image, spatial, frame[..., :3], cond(frame))
  assert alone.std() > 0.01
  np.testing.assert_allclose(
    inflated, np.repeat(alone, 4, axis=1), atol=1e-4 * alone.std()
  )


def test_inflation_is_deterministic(inflate, tmp_path, monkeypatch):
  """Also where a model is so large that its levels are made one by one."""
  folders = [inflate("IF-I", base.IF_TINY)]
  monkeypatch.setattr(lazy_stage, "few_params", lambda _: False)
  folders.append(inflate("IF-I", base.IF_TINY, again=True))
  a, b = (bundles.open_bundle(folder).load("base") for folder in folders)
  check_same(a, b)
  drawn = [v for k, v in a.items() if "temporal_" in k and "conv" in k]
  assert any(leaf.std() > 0 for leaf in drawn)
  with pytest.raises(UserError, match="not an image stage"):
    run("bundle", folders[0], tmp_path / "c", temporal=base.IF_TINY)


def test_default_scheduler(broken, capsys):
  shutil.rmtree(broken / "scheduler")
  stage = diffusers.read_stage(broken)
  assert stage.config.diffusion.schedule == "squaredcos_cap_v2"
  assert stage.config.defaults.max_value == 1.5
  assert "scheduler=FILE" in capsys.readouterr().err


def edit_scheduler(folder, **changes):
  path = folder / "scheduler" / "scheduler_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return path


def test_given_scheduler(broken):
  path = edit_scheduler(broken, sample_max_value=3.0)
  other = path.rename(broken / "other.json")
  stage = diffusers.read_stage(broken, scheduler=str(other))
  assert stage.config.defaults.max_value == 3.0


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("beta_schedule", "linear"),
    ("dynamic_thresholding_ratio", "a"),
    ("sample_max_value", 0.5),
    ("_class_name", "DPMSolverMultistepScheduler"),
    ("num_train_timesteps", 500),
    ("thresholding", "yes"),
    ("use_karras_sigmas", True),
    ("of_the_future", 1),
    ("prediction_type", "flow"),
    ("rescale_betas_zero_snr", True),
    ("steps_offset", 1),
    ("timestep_spacing", "trailing"),
    ("trained_betas", [0.1]),
    ("variance_type", "fixed_large"),
  ],
)
def test_unsupported_schedulers(broken, key, value):
  edit_scheduler(broken, **{key: value})
  with pytest.raises(UserError, match=rf"scheduler_config.*{key}="):
    diffusers.read_stage(broken)


@pytest.mark.parametrize(
  ("upscales", "changes", "words"),
  [
    (False, {"noise_embedding": "cosine"}, "needs 'squaredcos_cap_v2'"),
    (False, {"noise_embedding_shift": 1.0}, "noise_embedding_shift=1.0"),
    (True, {"low_resolution": "half_pixel"}, "needs 'corners'"),
    (False, {}, ""),  # a shift of the training noise is no obstacle
  ],
)
def test_conditioning_that_diffusers_lacks(upscales, changes, words):
  model = common.IF_TINY_SSR if upscales else common.IF_TINY
  config = StageConfig(
    model=dataclasses.replace(model, **changes),
    diffusion=dataclasses.replace(common.IF_DIFFUSION, shift=-4.4),
    video=VideoConfig(num_frames=1, fps=16.0, resolution=(16, 16)),
  )
  if not changes:
    assert diffusers.to_scheduler(config)["prediction_type"] == "epsilon"
    return
  with pytest.raises(UserError, match=words):
    diffusers.to_scheduler(config)


def test_static_clipping(broken):
  edit_scheduler(broken, thresholding=False)
  assert diffusers.read_stage(broken).config.defaults.max_value == 1.0
  edit_scheduler(broken, clip_sample=False)
  with pytest.raises(UserError, match="clip_sample=False"):
    diffusers.read_stage(broken)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("target", ["bundle", "diffusers"])
def test_values_that_are_not_finite_name_their_tensor(
  broken, bundle, tmp_path, value, target
):
  """Of published weights, of bundles that are rewritten or linked."""
  file = broken / "unet" / WEIGHTS
  tensors = safetensors.load(file)
  name = "mid_block.resnets.0.conv1.weight"
  tensors[name][1, 2, 0, 0] = value
  safetensors.save(file, tensors)
  with pytest.raises(UserError, match=rf"{WEIGHTS}: {name} has .*NaN or inf"):
    run("diffusers", broken, tmp_path / "out")
  copy = shutil.copytree(bundle.folder, tmp_path / "bundle")
  part = bundles.open_bundle(copy).parts["t2i"].tensors[0]
  leaves = safetensors.load(copy / part)
  path = "mid_0/conv_1/bias"
  leaves[path][3] = value
  (copy / part).unlink()  # it is a link
  safetensors.save(copy / part, leaves)
  with pytest.raises(UserError, match=rf"{part}: {path} has values"):
    bundles.open_bundle(copy).load("t2i")
  with pytest.raises(UserError, match=rf"{part}: {path} has values"):
    run("bundle", copy, tmp_path / "x", target=target, stage="t2i")
  with pytest.raises(UserError, match=rf"{part}: {path} has values"):
    run("bundle", copy, tmp_path / "linked")


def test_float16_overflow_is_named(tmp_path, bundle):
  copy = shutil.copytree(bundle.folder, tmp_path / "bundle")
  part = bundles.open_bundle(copy).parts["t2i"].tensors[0]
  leaves = {k: v.astype("f4") for k, v in safetensors.load(copy / part).items()}
  leaves["head/bias"][0] = 1e5
  (copy / part).unlink()
  safetensors.save(copy / part, leaves)
  with pytest.raises(UserError, match="half head/bias in float16 has values"):
    run("bundle", copy, tmp_path / "out", half=True)


def test_broken_sources(broken, tmp_path):
  file = broken / "unet" / WEIGHTS
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match="only a part"):
    run("diffusers", broken, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  file.unlink()
  pickled = file.with_suffix(".bin")
  pickled.write_bytes(pickle.dumps({}))
  with pytest.raises(UserError, match="pickled weights are not read"):
    run("diffusers", broken, tmp_path / "out")


def test_full_disk_keeps_the_old_bundle(
  stand_ins, bundle, tmp_path, monkeypatch
):
  out = run("bundle", bundle.folder, tmp_path / "bundle")
  before = {f.name: f.read_bytes() for f in out.iterdir()}

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(safetensors, "_bytes", full)
  with pytest.raises(UserError, match="No space left"):
    run("diffusers", stand_ins / "IF-I", out)
  assert {f.name: f.read_bytes() for f in out.iterdir()} == before


def test_too_little_space_is_detected_before_writing(
  stand_ins, tmp_path, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(UserError, match="make room"):
    run("diffusers", stand_ins / "IF-I", tmp_path / "out")
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"source": "diffuser"}, 'did you mean "diffusers"'),
    ({"target": "onnx"}, "to='onnx'"),
    ({"out": ""}, "out is missing"),
    ({"src": []}, "src is missing"),
    ({"target": "stablehlo"}, "to a bundle first"),
    ({"stage": "base"}, "no stage base; it holds t2i"),
    ({"temporal": t2i.IF_TINY}, "has no temporal layers"),
    ({"source": "workdir"}, "has saved a bundle"),
    ({"source": "bundle"}, r"has no bundle\.json"),
    ({"adapters": ("none.safetensors",)}, "none.safetensors"),
  ],
)
def test_invalid_conversions(stand_ins, tmp_path, options, message):
  given = {
    "source": "diffusers",
    "src": stand_ins / "IF-I",
    "out": tmp_path / "out",
  } | options
  with pytest.raises(UserError, match=message):
    run(**given)


@pytest.mark.parametrize(
  ("target", "name"),
  [
    ("diffusers", "unet/config.json"),
    ("diffusers", "scheduler/mine.json"),
    ("stablehlo", "call.py"),
  ],
)
def test_files_of_others_are_not_replaced(bundle, tmp_path, target, name):
  mine = tmp_path / name
  mine.parent.mkdir(exist_ok=True)
  mine.write_text("mine")
  with pytest.raises(UserError, match="is there already; give another out"):
    run("bundle", bundle.folder, tmp_path, target=target, stage="t2i")
  assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]
  assert mine.read_text() == "mine"


def test_a_bundle_leaves_files_of_others(bundle, stand_ins, tmp_path):
  (name,) = bundle.parts["t2i"].tensors
  for file in (name, "lora.safetensors", "tokenizer.model"):
    (tmp_path / file).write_text("mine")
  for source in ("bundle", "diffusers", "bundle"):
    src = bundle.folder if source == "bundle" else stand_ins / "IF-I"
    run(source, src, tmp_path)
  for file in (name, "lora.safetensors", "tokenizer.model"):
    assert (tmp_path / file).read_text() == "mine"
  copied = bundles.open_bundle(tmp_path)
  check_same(copied.load("t2i"), bundle.load("t2i"))


def test_diffusers_takes_one_stage(bundle, tmp_path):
  with pytest.raises(UserError, match=r"stage=t2i or.*ssr_image"):
    run("bundle", bundle.folder, tmp_path / "out", target="diffusers")


def test_text_encoder_of_trained_stages_is_not_replaced(
  stand_ins, bundle, tmp_path
):
  out = run("bundle", bundle.folder, tmp_path / "imported")
  run("t5", stand_ins / "T5", out)  # without cleaning: another identity
  assert "cleaning" not in bundles.open_bundle(out).parts["text"].meta
  golden = pathlib.Path(__file__).parents[1] / "inference/golden/format_1"
  out = run("bundle", golden, tmp_path / "trained")
  before = sorted(out.iterdir())
  with pytest.raises(UserError, match="base, ssr was trained with another"):
    run("t5", stand_ins / "T5", out)
  assert sorted(out.iterdir()) == before


def test_text_encoder_of_another_width(stand_ins, bundle, tmp_path):
  out = run("bundle", bundle.folder, tmp_path / "bundle")
  index = json.loads((out / "bundle.json").read_text())
  index["parts"]["t2i"]["meta"]["model"]["text_dim"] = 128
  (out / "bundle.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="128, but the text encoder's have 64"):
    Pipeline.from_pretrained(out)


def test_bundle_without_text_encoder(stand_ins, tmp_path):
  out = run("diffusers", stand_ins / "IF-I", tmp_path / "out")
  with pytest.raises(UserError, match=r"holds no text encoder.*from=t5"):
    Pipeline.from_pretrained(out)
  text = run("t5", stand_ins / "T5", tmp_path / "text")
  pipeline = Pipeline.from_pretrained(out, text)
  picture = pipeline.text_to_image(
    ["a dog"], seed=[1], settings=Settings(steps=2)
  )
  assert picture.shape == (1, 16, 16, 3)


def test_merged_adapter(bundle, tmp_path):
  rng = np.random.default_rng(0)
  layer = "mid_block.attentions.0.to_q"
  a = rng.standard_normal((2, 64), np.float32)
  b = rng.standard_normal((64, 2), np.float32)
  file = tmp_path / "pytorch_lora_weights.safetensors"
  tensors = {f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b}
  safetensors.save(file, tensors)
  export = lambda name, **options: diffusers.open_weights(
    run(
      "bundle",
      bundle.folder,
      tmp_path / name,
      stage="t2i",
      target="diffusers",
      **options,
    )
    / "unet",
    diffusers.STEM,
  )
  original = export("plain")
  weights = export("out", adapters=(str(file),), adapter_scale=0.5)
  changed = [
    name
    for name, tensor in weights.items()
    if not np.array_equal(tensor, original[name])
  ]
  assert changed == [f"{layer}.weight"]
  old, new = (
    np.asarray(w[changed[0]], np.float32) for w in (original, weights)
  )
  expected = np.float32(np.float16(old + 0.5 * b @ a))
  np.testing.assert_allclose(new, expected, rtol=1e-3)


def test_float16(tmp_path):
  model = config_from_diffusers(unets.IF_I, "config.json")
  leaves = random_leaves(model, 0, np.float32)
  stage = LazyStage(
    name="t2i",
    config=StageConfig(
      model=model,
      diffusion=DiffusionConfig(),
      video=VideoConfig(num_frames=1, fps=16.0, resolution=(16, 16)),
    ),
    leaves=leaves,
    about={"licence": "mine"},
  )
  add_parts(tmp_path / "whole", [stage])
  out = run("bundle", tmp_path / "whole", tmp_path / "half", half=True)
  half = bundles.open_bundle(out)
  assert half.parts["t2i"].meta["licence"] == "mine"
  sizes = [
    sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors"))
    for name in ("half", "whole")
  ]
  assert sizes[0] < 0.55 * sizes[1]
  for path, leaf in half.load("t2i").items():
    assert leaf.dtype == np.float16
    np.testing.assert_allclose(leaf, leaves[path], rtol=1e-3, atol=1e-7)
