"""Whole runs: what trains, what stays frozen, files, errors."""

import contextlib
import dataclasses
import json

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
from lumiere_jax.training.run import Run
from tests.conftest import replace
from tests.training.conftest import (
  BASE,
  CONDITIONAL,
  IMAGE,
  T2I,
  make_task,
  records,
)
from tests.training.killing import restore


def load(workdir, stage):
  return open_bundle(workdir).load(stage)


def assert_same(expected, got):
  for path, leaf in expected.items():  # bit for bit
    np.testing.assert_array_equal(leaf, got[path], err_msg=path)


def fresh(experiment):
  """The leaves before the first step."""
  task = make_task(experiment)
  return jax.jit(task.init)(jax.random.key(experiment.seed))


def test_only_trainable_leaves_change(image_run, base_run):
  image, video = load(image_run, "t2i"), load(base_run, "base")
  added = {k for k in video if k.startswith("temporal_")}
  assert video.keys() - added == image.keys()
  assert_same(image, video)
  before = fresh(BASE)
  assert not [k for k in added if np.array_equal(video[k], before[k])]


def test_frozen_weights_are_saved_once(base_run):
  """Without moments or averages: compared with sizes by hand."""
  video = load(base_run, "base")
  trained = sum(v.size for k, v in video.items() if k.startswith("temporal_"))
  start = json.loads((base_run / "runs.jsonl").read_text())
  frozen = sum(v.size for v in video.values()) - trained
  assert start["parameters"] == {"trainable": trained, "frozen": frozen}
  assert start["memory"]["frozen weights"] == 4 * frozen
  assert start["memory"]["average"] == 4 * trained
  assert 8 * trained <= start["memory"]["optimizer"] <= 8 * trained + 64
  files = list((base_run / "frozen").iterdir())
  assert len(files) == 1
  assert files[0].stat().st_size >= 4 * frozen
  # The bundle has a hard link, no second copy.
  linked = [f for f in (base_run / "bundle").iterdir() if "frozen" in f.name]
  assert linked[0].samefile(files[0])
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
    assert record["grad_norms"].keys() == {
      "temporal_down_0",
      "temporal_mid",
      "temporal_up_0",
    }
  held_out = records(base_run / "held_out.jsonl")
  assert [r["step"] for r in held_out] == [0, 4]
  assert len(held_out[0]["by_noise_level"]) == BASE.train.eval_levels
  start = json.loads((base_run / "runs.jsonl").read_text())
  assert (start["start_step"], start["processes"]) == (0, 1)
  assert start["devices"] == jax.device_count()


def test_unfinished_files_of_a_killed_run_are_removed(base_run, image_run):
  places = base_run, base_run / "bundle"
  halves = [place / ".x.safetensors.0f.part" for place in places]
  for half in halves:
    half.write_bytes(b"half")
  train(replace(BASE, init_from=str(image_run)), base_run)
  assert not any(half.exists() for half in halves)


def test_a_second_run_in_a_workdir_is_an_error(base_run, image_run):
  with locked(base_run), pytest.raises(UserError, match="another process"):
    train(replace(BASE, init_from=str(image_run)), base_run)


def test_without_resume_the_old_run_is_moved(tmp_path):
  brief = replace(T2I, train={"steps": 1})
  train(brief, tmp_path)
  first = (tmp_path / "metrics.jsonl").read_text()
  train(replace(brief, resume=False, seed=1), tmp_path)
  train(replace(brief, resume=False, seed=2), tmp_path)
  assert (tmp_path / "before-1" / "metrics.jsonl").read_text() == first
  assert (tmp_path / "before-2" / "bundle" / "bundle.json").is_file()
  assert len(records(tmp_path / "runs.jsonl")) == 1
  assert (tmp_path / "metrics.jsonl").read_text() != first


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory, base_run):
  workdir = tmp_path_factory.mktemp("conditional")
  experiment = replace(
    CONDITIONAL,
    init_from=str(base_run),
    preview={"every": 2, "clips": 2, "steps": 2},
    train={"keep_best": 1, "eval_every": 2},
  )
  train(experiment, workdir)
  return workdir


def test_the_conditional_stage_starts_from_the_base_exactly(
  conditional_run, base_run
):
  held_out = lambda workdir: records(workdir / "held_out.jsonl")
  assert held_out(conditional_run)[0]["loss"] == pytest.approx(
    held_out(base_run)[-1]["loss"], rel=1e-6
  )
  video, given = load(base_run, "base"), load(conditional_run, "conditional")
  assert given.keys() - video.keys() == {"cond_in/kernel"}
  assert np.abs(given["cond_in/kernel"]).max() > 0
  spatial = {k: v for k, v in video.items() if not k.startswith("temporal_")}
  assert_same(spatial, given)


def test_previews_are_files_and_in_tensorboard(conditional_run):
  names = sorted(p.name for p in (conditional_run / "previews").iterdir())
  assert [name[:10] for name in names] == [
    f"{step:08d}-{k}"[:10] for step in (2, 4) for k in range(2)
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
  brief = {"steps": 1, "eval_clips": 2, "eval_levels": 2}
  tiny = {"resolution": 16, "crop": 8, "num_clips": 4}
  shrink = lambda experiment, start, **model: replace(
    experiment,
    model=small | model,
    train=brief,
    data=tiny,
    init_from=str(start),
    preview={"every": 0},
  )
  temporal = dataclasses.replace(
    ssr.TINY.model.temporal, resample=(), head_dim=8
  )
  train(shrink(ssr_image.TINY, ""), tmp_path / "image")
  video = shrink(conditional.SSR_TINY, tmp_path / "image", temporal=temporal)
  train(video, tmp_path / "video")
  image = load(tmp_path / "image", "ssr_image")
  given = load(tmp_path / "video", "ssr")
  assert_same(image, given)
  added = given.keys() - image.keys()
  assert {k.partition("/")[0] for k in added} == {
    "cond_in",
    *("temporal_down_0_0", "temporal_mid", "temporal_up_0_0"),
    "temporal_up_0_1",
  }


def test_images_and_videos_train_together(tmp_path, image_run):
  """Two programs are compiled: for images and for videos."""
  folder = tmp_path / "images"
  write_images(folder, 6)
  compiled = []
  experiment = replace(
    BASE,
    init_from=str(image_run),
    data={"images": str(folder), "image_share": 0.5},
    train={"trainable": ".*", "steps": 10},
  )
  with watching(compiled):
    train(experiment, tmp_path / "w")
  assert sorted(shape[1] for shape in compiled) == [1, 4]
  norms = [r["grad_norms"] for r in records(tmp_path / "w/metrics.jsonl")]
  image_steps = [n for n in norms if n["temporal_mid"] == 0]
  assert 2 <= len(image_steps) <= 8
  assert all(n["mid"] > 0 for n in norms)
  # Resumed half way, it gives the same state, separate count included.
  train(replace(experiment, train={"steps": 5}), tmp_path / "half")
  train(experiment, tmp_path / "half")
  states = [restore(tmp_path / name, experiment) for name in ("w", "half")]
  counts = [int(s.opt_state.count) for s in states]
  assert counts == [10 - len(image_steps)] * 2
  for one, two in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(one, two)


def write_images(folder, count):
  folder.mkdir()
  rng = np.random.default_rng(0)
  for k in range(count):
    write_image(
      folder / f"{k}.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    )
    (folder / f"{k}.txt").write_text(f"image {k}")


def test_buckets_compile_once_each_and_use_all_clips(tmp_path, image_run):
  """Videos of two lengths and two aspect ratios in three batch shapes."""
  folder = tmp_path / "videos"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for k, (frames, height, width) in enumerate(
    [(8, 8, 8)] * 2 + [(4, 8, 16)] * 3 + [(4, 16, 16)] * 2
  ):
    pixels = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    write_video(folder / f"{k}.mp4", pixels, 16.0)
    (folder / f"{k}.txt").write_text(f"video {k}")
  seen, compiled = [], []
  experiment = replace(
    BASE,
    init_from=str(image_run),
    data={
      "source": "files",
      "path": str(folder),
      "buckets": "8x8x8 4x8x16",
      "held_out": 0.0,
    },
    train={"steps": 8},
  )
  with watching(compiled, seen):
    train(experiment, tmp_path / "w")
  shapes = {(4, 8, 8), (8, 8, 8), (4, 8, 16)}
  assert sorted(shape[1:4] for shape in compiled) == sorted(shapes)
  assert {c for batch in seen for c in batch} == {
    f"video {k}" for k in range(7)
  }


@contextlib.contextmanager
def watching(shapes, captions=None):
  """Collects the shapes of compiled steps and the captions of batches."""
  log, arrays = MetricLogger.log_compilation, Run._arrays

  def note_shape(logger, shape, *args):
    shapes.append(shape)
    log(logger, shape, *args)

  def note_captions(run, batch):
    if captions is not None:
      captions.append(batch["caption"])
    return arrays(run, batch)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(MetricLogger, "log_compilation", note_shape)
    patch.setattr(Run, "_arrays", note_captions)
    yield


def test_images_need_trainable_spatial_layers(tmp_path, image_run):
  write_images(tmp_path / "images", 2)
  experiment = replace(
    BASE, init_from=str(image_run), data={"images": str(tmp_path / "images")}
  )
  with pytest.raises(UserError, match=r"config\.data\.images.*frozen here"):
    train(experiment, tmp_path / "w")


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory, base_run):
  workdir = tmp_path_factory.mktemp("lora")
  experiment = replace(
    BASE,
    init_from=str(base_run),
    lora={"rank": 2, "alpha": 4.0, "target": "temporal"},
  )
  train(experiment, workdir)
  return workdir


def test_adapters_train_and_are_small(adapter_run, base_run):
  base, leaves = load(base_run, "base"), load(adapter_run, "base")
  weights, adapter = lora.split_params(leaves)
  assert_same(base, weights)
  assert weights.keys() == base.keys()
  paths = lora.kernels(adapter)
  assert all(path.startswith("temporal_") for path in paths)
  assert all(np.abs(adapter[f"lora/{p}/b"]).max() > 0 for p in paths)
  file = adapter_run / "adapter.safetensors"
  saved = safetensors.load(file)
  assert saved.keys() == adapter.keys()
  assert_same(adapter, saved)
  frozen = next((adapter_run / "frozen").iterdir())
  assert file.stat().st_size < frozen.stat().st_size / 4
  start = json.loads((adapter_run / "runs.jsonl").read_text())
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
  merged = lora.merge(load(adapter_run, "base"))
  after = load(tmp_path, "base")
  assert after.keys() == merged.keys()
  spatial = {k: v for k, v in merged.items() if not k.startswith("temporal_")}
  assert_same(spatial, after)


def test_stages_can_start_from_their_descendants(base_run, tmp_path, capsys):
  """From the spatial part of a base, to fine-tune its images."""
  train(replace(T2I, init_from=str(base_run), train={"steps": 1}), tmp_path)
  assert "that stage 't2i' does not use; dropped: temporal_" in (
    capsys.readouterr().err
  )
  assert load(tmp_path, "t2i").keys() == fresh(T2I).keys()


def test_many_skipped_steps_stop_the_run(tmp_path):
  broken = replace(
    T2I, train={"learning_rate": 1e30, "max_skips": 3, "steps": 30}
  )
  with pytest.raises(UserError) as error:
    train(broken, tmp_path)
  assert "were not finite" in str(error.value)
  assert "config.train.learning_rate" in str(error.value)
  last = records(tmp_path / "metrics.jsonl")[-1]
  assert last["skipped"] >= 3
  assert last["step"] < 30


def test_muon_resumes_exactly(tmp_path):
  muon = replace(T2I, train={"optimizer": "muon", "save_every": 1})
  once, twice = tmp_path / "once", tmp_path / "twice"
  train(replace(muon, train={"steps": 3}), once)
  for steps in (1, 3):
    train(replace(muon, train={"steps": steps}), twice)
  assert_same(load(once, "t2i"), load(twice, "t2i"))
  losses = [
    [record["loss"] for record in records(run / "metrics.jsonl")]
    for run in (once, twice)
  ]
  assert losses[0] == losses[1]


def test_training_in_half_precision(tmp_path, image_run):
  experiment = replace(
    BASE,
    init_from=str(image_run),
    execution={"dtype": "bfloat16"},
    train={"steps": 2, "frozen_dtype": "bfloat16", "optimizer": "adafactor"},
  )
  train(experiment, tmp_path)
  assert np.isfinite(records(tmp_path / "metrics.jsonl")[-1]["loss"])
  start = json.loads((tmp_path / "runs.jsonl").read_text())
  # Kernels take 2 bytes a number, scales and biases 4, as in sampling.
  spatial = load(image_run, "t2i")
  kernels = sum(v.size for k, v in spatial.items() if k.endswith("/kernel"))
  frozen = start["parameters"]["frozen"]
  assert 0 < kernels < frozen == sum(v.size for v in spatial.values())
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
  assert_same(load(image_run, "t2i"), leaves)


def test_another_config_is_an_error_that_names_leaves(
  base_run, image_run, tmp_path
):
  wider = dataclasses.replace(BASE.model, channels=(16,))
  experiment = replace(BASE, model=wider, init_from=str(image_run))
  before = sorted(p.name for p in (base_run / "checkpoints").iterdir())
  with pytest.raises(UserError, match=r"checkpoint 4 .*temporal_\S+ is 8"):
    train(replace(experiment, train={"steps": 9}), base_run)
  with pytest.raises(UserError, match=r"init_from=.* is \d+x\d+"):
    train(experiment, tmp_path)
  assert sorted(p.name for p in (base_run / "checkpoints").iterdir()) == before


def test_full_size_needs_t5_weights(tmp_path):
  data = {"source": "procedural", "num_clips": 8}
  experiment = replace(t2i.FULL, data=data, mesh={"fsdp": 1})
  with pytest.raises(UserError, match=r"4096.*config.text.weights=DIR"):
    train(experiment, tmp_path)


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}])
def test_a_conditional_model_needs_a_base(changes, image_run, tmp_path):
  experiment = replace(CONDITIONAL, init_from=str(image_run), **changes)
  words = "but stage 'conditional' starts from conditional or base"
  with pytest.raises(UserError, match=words):
    train(experiment, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_adapters_need_a_trained_model(image_run, tmp_path):
  rank = {"rank": 2}
  with pytest.raises(UserError, match=r"config\.lora\.rank=2 adapts a trained"):
    train(replace(T2I, lora=rank), tmp_path / "a")
  experiment = replace(BASE, init_from=str(image_run), lora=rank)
  with pytest.raises(UserError, match="nothing to adapt"):
    train(experiment, tmp_path / "b")


def test_the_network_that_trains_is_the_one_in_the_bundle(base_run):
  meta = open_bundle(base_run).parts["base"].meta
  assert tuple(meta["model"]["channels"]) == IMAGE.channels
  assert meta["step"] == 4
