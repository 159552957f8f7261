"""Whole runs: what trains, what stays frozen, files, errors."""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from configs import conditional, ssr, ssr_image, t2i
from lumiere_jax.errors import UserError
from lumiere_jax.inference.pipeline import Pipeline
from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.models import lora
from lumiere_jax.models.unet import abstract_params
from lumiere_jax.parallel.mesh import make_mesh
from lumiere_jax.stages.denoiser import cast_kernels
from lumiere_jax.storage import safetensors
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.bundle import open_bundle
from lumiere_jax.training.initialization import abstract_state
from lumiere_jax.training.loop import train
from lumiere_jax.training.metric_logger import MetricLogger
from lumiere_jax.training.optimizer import averaged_weights
from lumiere_jax.training.run import Run
from lumiere_jax.training.workdir import open_workdir
from tests.conftest import replace
from tests.training.conftest import (
  BASE,
  CONDITIONAL,
  IMAGE,
  T2I,
  assert_same,
  load,
  make_task,
  records,
  run_stage,
)
from tests.training.killing import restore


def fresh(experiment):
  """The leaves before the first step."""
  task = make_task(experiment)
  return jax.jit(task.init)(jax.random.key(experiment.seed))


def spatial(leaves):
  return {k: v for k, v in leaves.items() if not k.startswith("temporal_")}


def test_only_trainable_leaves_change(image_run, base_run):
  image, video = load(image_run, "t2i"), load(base_run, "base")
  assert spatial(video).keys() == image.keys()
  assert_same(image, video)
  before, added = fresh(BASE), video.keys() - image.keys()
  assert not [k for k in added if np.array_equal(video[k], before[k])]


def test_frozen_weights_are_saved_once(base_run):
  """Without moments or averages: compared with sizes by hand."""
  video = load(base_run, "base")
  frozen = sum(v.size for v in spatial(video).values())
  trained = sum(v.size for v in video.values()) - frozen
  (start,) = records(base_run / "runs.jsonl")
  assert start["parameters"] == {"trainable": trained, "frozen": frozen}
  assert start["memory"]["frozen weights"] == 4 * frozen
  assert start["memory"]["average"] == 4 * trained
  assert 8 * trained <= start["memory"]["optimizer"] <= 8 * trained + 64
  (file,) = (base_run / "frozen").iterdir()
  assert file.stat().st_size >= 4 * frozen
  # The bundle has a hard link, no second copy.
  (linked,) = (base_run / "bundle").glob("*frozen*")
  assert linked.samefile(file)
  newest = max((base_run / "checkpoints").iterdir(), key=lambda p: p.name)
  stored = sum(f.stat().st_size for f in newest.rglob("*") if f.is_file())
  # Weights, average, two moments; compressed, with some metadata.
  assert stored < 4 * 4 * trained * 1.5 + 300_000


def test_files_of_a_run(base_run):
  steps = records(base_run / "metrics.jsonl")
  assert [r["step"] for r in steps] == [1, 2, 3, 4]
  for record in steps:
    assert np.isfinite(record["loss"])
    assert record["skipped"] == 0
    assert record["clips_per_s"] > 0
    assert 0 <= record["data_wait"] <= 1
    assert record["tflops"] > 0
    assert record["mfu"] is None  # the peak of a CPU is unknown
    total = np.sqrt(sum(x**2 for x in record["grad_norms"].values()))
    assert record["grad_norm"] == pytest.approx(total, rel=1e-5)
    blocks = {"temporal_down_0", "temporal_mid", "temporal_up_0"}
    assert record["grad_norms"].keys() == blocks
  held_out = records(base_run / "held_out.jsonl")
  assert [r["step"] for r in held_out] == [0, 4]
  assert len(held_out[0]["by_noise_level"]) == BASE.train.eval_levels
  (start,) = records(base_run / "runs.jsonl")
  assert (start["start_step"], start["processes"]) == (0, 1)
  assert start["devices"] == jax.device_count()
  meta = open_bundle(base_run).parts["base"].meta
  assert tuple(meta["model"]["channels"]) == IMAGE.channels
  assert meta["step"] == 4


def test_unfinished_files_of_a_killed_run_are_removed(base_run, image_run):
  places = base_run, base_run / "bundle"
  halves = [place / f".x.safetensors.{'0f' * 16}.part" for place in places]
  for half in halves:
    half.write_bytes(b"half")
  train(replace(BASE, init_from=str(image_run)), base_run)
  assert not any(half.exists() for half in halves)


def test_a_second_run_in_a_workdir_is_an_error(base_run, image_run):
  with locked(base_run), pytest.raises(UserError, match="another process"):
    train(replace(BASE, init_from=str(image_run)), base_run)


def test_without_resume_the_old_run_is_moved(tmp_path, image_run):
  shutil.copytree(image_run, tmp_path, dirs_exist_ok=True)
  first = (tmp_path / "metrics.jsonl").read_text()
  train(replace(T2I, resume=False, seed=1, train={"steps": 1}), tmp_path)
  assert (tmp_path / "before-1" / "metrics.jsonl").read_text() == first
  assert len(records(tmp_path / "runs.jsonl")) == 1
  assert (tmp_path / "metrics.jsonl").read_text() != first
  with open_workdir(tmp_path, resume=False):
    names = {path.name for path in tmp_path.iterdir()}
  assert names == {"before-1", "before-2", "text_cache"}
  assert (tmp_path / "before-2" / "bundle" / "bundle.json").is_file()


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory, base_run):
  experiment = replace(
    CONDITIONAL,
    init_from=str(base_run),
    preview={"every": 2, "clips": 2, "steps": 2},
    train={"keep_best": 1, "eval_clips": 2, "eval_every": 2},
  )
  return run_stage(tmp_path_factory, experiment)


def test_the_conditional_stage_starts_from_the_base_exactly(
  conditional_run, base_run
):
  first = records(conditional_run / "held_out.jsonl")[0]
  last = records(base_run / "held_out.jsonl")[-1]
  assert first["loss"] == pytest.approx(last["loss"], rel=1e-6)
  video, given = load(base_run, "base"), load(conditional_run, "conditional")
  assert given.keys() - video.keys() == {"cond_in/kernel"}
  assert np.abs(given["cond_in/kernel"]).max() > 0
  assert_same(spatial(video), given)


def test_previews_are_files_and_in_tensorboard(conditional_run):
  names = sorted(p.name for p in (conditional_run / "previews").iterdir())
  assert [name[:10] for name in names] == [
    f"{step:08d}-{k}" for step in (2, 4) for k in range(2)
  ]
  assert all(name.endswith(".mp4") for name in names)
  events = list(read_events(conditional_run / "tensorboard"))
  images = [v for e in events for v in e.summary.value if v.HasField("image")]
  assert len(images) == 4
  assert all(v.image.encoded_image_string[:4] == b"GIF8" for v in images)
  # Given, sample and real clip side by side: three frames of 8 and two gaps.
  assert {(v.image.height, v.image.width) for v in images} == {(8, 28)}
  tags = {v.tag for e in events for v in e.summary.value}
  assert {"train/loss", "train/grad_norms/cond_in", "held_out/loss"} <= tags


def read_events(folder):
  """Events of all files; each has a length, checksum, bytes and checksum."""
  for path in folder.iterdir():
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      yield Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]


def test_the_best_bundle_has_the_lowest_held_out_loss(conditional_run):
  held_out = records(conditional_run / "held_out.jsonl")[1:]
  best = min(held_out, key=lambda record: record["loss"])["step"]
  stage = open_bundle(conditional_run / "best").parts["conditional"]
  assert stage.meta["step"] == best
  assert (conditional_run / "checkpoints" / str(best)).is_dir()


def test_super_resolution_stages_train(tmp_path):
  """The real configs, shrunk; the video model is also conditional."""
  small = {
    "channels": (8,),
    "num_res_blocks": (1,),
    "attention": ("cross",),
    "text_channels": 8,
    "head_dim": 8,
    "norm_groups": 4,
  }
  shrink = lambda experiment, start, **model: replace(
    experiment,
    model=small | model,
    train={"steps": 1, "eval_clips": 0, "eval_levels": 2},
    data={"resolution": 16, "crop": 8, "num_clips": 4},
    init_from=str(start),
    preview={"every": 0},
  )
  temporal = dataclasses.replace(
    ssr.TINY.model.temporal, resample=(), head_dim=8
  )
  train(shrink(ssr_image.TINY, ""), tmp_path / "image")
  video = shrink(conditional.SSR_TINY, tmp_path / "image", temporal=temporal)
  train(replace(video, train={"eval_clips": 2}), tmp_path / "video")
  image = load(tmp_path / "image", "ssr_image")
  given = load(tmp_path / "video", "ssr")
  assert_same(image, given)
  assert {k.partition("/")[0] for k in given.keys() - image.keys()} == {
    *("cond_in", "temporal_down_0_0", "temporal_mid", "temporal_up_0_0"),
    "temporal_up_0_1",
  }


@contextlib.contextmanager
def watching(shapes, captions):
  """Collects the shapes of compiled steps and the captions of batches."""
  log, arrays = MetricLogger.log_compilation, Run._arrays

  def note_shape(logger, shape, *args):
    shapes.append(shape[1:4])
    log(logger, shape, *args)

  def note_captions(run, batch):
    captions.update(batch["caption"])
    return arrays(run, batch)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(MetricLogger, "log_compilation", note_shape)
    patch.setattr(Run, "_arrays", note_captions)
    yield


def write_clips(folder, *shapes):
  """Random images and videos of these (frames, height, width), captioned."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for k, shape in enumerate(shapes):
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if len(pixels) == 1:
      write_image(folder / f"{k}.png", pixels[0])
    else:
      write_video(folder / f"{k}.mp4", pixels, 16.0)
    (folder / f"{k}.txt").write_text(f"clip {k}")
  return str(folder)


def test_images_and_videos_train_together(tmp_path, image_run):
  """Two programs are compiled: for images and for videos."""
  images = write_clips(tmp_path / "images", *[(1, 8, 8)] * 6)
  compiled = []
  experiment = replace(
    BASE,
    init_from=str(image_run),
    data={"images": images, "image_share": 0.5},
    train={"trainable": ".*", "steps": 6},
  )
  with watching(compiled, set()):
    train(experiment, tmp_path / "w")
  assert sorted(compiled) == [(1, 8, 8), (4, 8, 8)]
  norms = [r["grad_norms"] for r in records(tmp_path / "w/metrics.jsonl")]
  image_steps = [n for n in norms if n["temporal_mid"] == 0]
  assert 1 <= len(image_steps) <= 5
  assert all(n["mid"] > 0 for n in norms)
  # Resumed half way, it gives the same state, separate count included.
  train(replace(experiment, train={"steps": 3}), tmp_path / "half")
  train(experiment, tmp_path / "half")
  states = [restore(tmp_path / name, experiment) for name in ("w", "half")]
  counts = [int(s.opt_state.count) for s in states]
  assert counts == [6 - len(image_steps)] * 2
  for one, two in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(one, two)


def test_buckets_compile_once_each_and_use_all_clips(tmp_path, image_run):
  """Videos of two lengths and two aspect ratios in three batch shapes."""
  shapes = [(8, 8, 8)] * 2 + [(4, 8, 16)] * 3 + [(4, 16, 16)] * 2
  folder = write_clips(tmp_path / "videos", *shapes)
  seen, compiled = set(), []
  buckets = {"buckets": "8x8x8 4x8x16", "held_out": 0.0}
  experiment = replace(
    BASE,
    init_from=str(image_run),
    data={"source": "files", "path": folder, **buckets},
    train={"steps": 8},
  )
  with watching(compiled, seen):
    train(experiment, tmp_path / "w")
  assert sorted(compiled) == [(4, 8, 8), (4, 8, 16), (8, 8, 8)]
  assert seen == {f"clip {k}" for k in range(7)}


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory, base_run):
  rank = {"rank": 2, "alpha": 4.0, "target": "temporal"}
  experiment = replace(BASE, init_from=str(base_run), lora=rank)
  return run_stage(tmp_path_factory, experiment)


def test_adapters_train_and_are_small(adapter_run, base_run):
  base = load(base_run, "base")
  weights, adapter = lora.split_params(load(adapter_run, "base"))
  assert_same(base, weights)
  assert weights.keys() == base.keys()
  paths = lora.kernels(adapter)
  assert all(path.startswith("temporal_") for path in paths)
  assert all(np.abs(adapter[f"lora/{p}/b"]).max() > 0 for p in paths)
  file = adapter_run / "adapter.safetensors"
  saved = safetensors.load(file)
  assert saved.keys() == adapter.keys()
  assert_same(adapter, saved)
  (frozen,) = (adapter_run / "frozen").iterdir()
  assert file.stat().st_size < frozen.stat().st_size / 4
  (start,) = records(adapter_run / "runs.jsonl")
  assert start["parameters"]["frozen"] == sum(v.size for v in base.values())


def test_an_adapter_only_fits_its_base(adapter_run, base_run, image_run):
  """The base with the adapter equals the bundle of the adapter's run."""
  with_it = Pipeline.from_pretrained(base_run, adapters=[adapter_run])
  alone = Pipeline.from_pretrained(adapter_run)
  weights = [p.stages["base"].params for p in (with_it, alone)]
  assert weights[0].keys() == weights[1].keys() == load(base_run, "base").keys()
  assert_same(*weights)
  with pytest.raises(UserError, match=f"base of '{base_run}'"):
    Pipeline.from_pretrained(adapter_run, adapters=[adapter_run])
  with pytest.raises(UserError, match="is for stage 'base'"):
    Pipeline.from_pretrained(image_run, adapters=[adapter_run])


def test_training_can_start_from_a_bundle_with_an_adapter(
  adapter_run, tmp_path
):
  train(replace(BASE, init_from=str(adapter_run), train={"steps": 1}), tmp_path)
  merged, after = lora.merge(load(adapter_run, "base")), load(tmp_path, "base")
  assert after.keys() == merged.keys()
  assert_same(spatial(merged), after)


def test_stages_can_start_from_their_descendants(base_run, tmp_path, capsys):
  """From the spatial part of a base, to fine-tune its images."""
  train(replace(T2I, init_from=str(base_run), train={"steps": 1}), tmp_path)
  err = capsys.readouterr().err
  assert "that stage 't2i' does not use; dropped: temporal_" in err
  bundle = tmp_path / "bundle"
  assert f"t2i: saved at step 1 of 1; averaged weights in {bundle}" in err
  assert bundle.is_dir()
  assert load(tmp_path, "t2i").keys() == fresh(T2I).keys()


def test_the_average_of_schedule_free_is_exported(tmp_path):
  """Also by a resumed run, whose state goes on."""
  experiment = replace(T2I, train={"optimizer": "schedule_free", "steps": 3})
  train(replace(experiment, train={"steps": 2}), tmp_path)
  train(experiment, tmp_path)
  state = restore(tmp_path, experiment)
  average = averaged_weights(state.opt_state, state.trainable)
  assert_same(load(tmp_path, "t2i"), state.ema)
  for path, leaf in average.items():
    np.testing.assert_allclose(state.ema[path], leaf, rtol=1e-5, atol=1e-6)
  assert any((average[k] != state.trainable[k]).any() for k in average)


def test_training_in_half_precision(tmp_path, image_run):
  experiment = replace(
    BASE,
    init_from=str(image_run),
    execution={"dtype": "bfloat16"},
    train={"steps": 2, "frozen_dtype": "bfloat16", "optimizer": "adafactor"},
  )
  train(experiment, tmp_path)
  assert np.isfinite(records(tmp_path / "metrics.jsonl")[-1]["loss"])
  (start,) = records(tmp_path / "runs.jsonl")
  # Kernels take 2 bytes a number, scales and biases 4, as in sampling.
  image = load(image_run, "t2i")
  kernels = sum(v.size for k, v in image.items() if k.endswith("/kernel"))
  frozen = start["parameters"]["frozen"]
  assert 0 < kernels < frozen == sum(v.size for v in image.values())
  memory = start["memory"]["frozen weights"]
  assert memory == 2 * kernels + 4 * (frozen - kernels)
  task = make_task(experiment)
  _, planned = abstract_state(experiment, task, make_mesh(experiment.mesh))
  assert memory == sum(v.size * v.dtype.itemsize for v in planned.values())
  dtypes = {k: v.dtype for k, v in planned.items()}
  sampled = cast_kernels(abstract_params(IMAGE), "bfloat16")
  assert dtypes == {k: v.dtype for k, v in sampled.items()}
  assert dtypes["mid_0/norm_0/scale"] == dtypes["head/bias"] == np.float32
  # On disk they keep their dtype, for interpolation and export.
  leaves = load(tmp_path, "base")
  assert {v.dtype for v in leaves.values()} == {np.dtype(np.float32)}
  assert_same(image, leaves)


def test_another_config_is_an_error_that_names_leaves(
  base_run, image_run, tmp_path
):
  experiment = replace(
    BASE, model={"channels": (16,)}, init_from=str(image_run)
  )
  before = sorted(p.name for p in (base_run / "checkpoints").iterdir())
  with pytest.raises(UserError, match=r"checkpoint 4 .*temporal_\S+ is 8"):
    train(replace(experiment, train={"steps": 9}), base_run)
  with pytest.raises(UserError, match=r"init_from=.* is \d+x\d+"):
    train(experiment, tmp_path)
  assert sorted(p.name for p in (base_run / "checkpoints").iterdir()) == before


RANK = {"lora": {"rank": 2}}


@pytest.mark.parametrize(
  ("experiment", "changes", "words"),
  [
    (CONDITIONAL, {}, "but stage 'conditional' starts from conditional or bas"),
    (CONDITIONAL, RANK, "but stage 'conditional' starts from conditional or"),
    (T2I, {**RANK, "init_from": ""}, r"config\.lora\.rank=2 adapts a trained"),
    (BASE, RANK, "nothing to adapt"),
    (BASE, {"data": {"images": "IMAGES"}}, r"config\.data\.images.*frozen her"),
  ],
)
def test_runs_that_cannot_start(
  experiment, changes, words, image_run, tmp_path
):
  images = write_clips(tmp_path / "images", *[(1, 8, 8)] * 2)
  if "data" in changes:
    changes = {"data": {"images": images}}
  experiment = replace(experiment, **{"init_from": str(image_run), **changes})
  with pytest.raises(UserError, match=words):
    train(experiment, tmp_path / "w")


def test_full_size_needs_t5_weights(tmp_path):
  data = {"source": "procedural", "num_clips": 8}
  experiment = replace(t2i.FULL, data=data, mesh={"fsdp": 1})
  with pytest.raises(UserError, match=r"4096.*config.text.weights=DIR"):
    train(experiment, tmp_path)
