"""Videos of TensorFlow Datasets builders, without TensorFlow.

The library's Video feature needs TensorFlow, so `Frames` replaces it: it reads
like a Video, from files of the real format.
"""

import contextlib
import dataclasses
import importlib.util
import io
import shutil
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.filters import Filters
from lumiere_jax.data.sources import tfds_builder
from lumiere_jax.data.sources.base import UnreadableClip
from lumiere_jax.data.sources.registry import open_sources
from lumiere_jax.data.sources.tfds import open_tfds
from lumiere_jax.errors import UserError
from tests.data.videos import SPEC, read_report, spec

LABELS = ["ApplyEyeMakeup", "Archery"]
COUNT = 12
Features = tfds.features.FeaturesDict


class Frames(tfds.features.Video):
  """A Video that takes encoded frames."""

  def __init__(self):
    tfds.features.Sequence.__init__(self, tfds.features.Image())

  def to_json_content(self):
    return tfds.features.Sequence.to_json_content(self)

  @classmethod
  def from_json_content(cls, value):
    return cls()


def png(level, size):
  file = io.BytesIO()
  Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "png")
  return file.getvalue()


def video(number, count, size=(24, 32)):
  """Frame k has the grey level 10 + 10 k + `number`."""
  return [png(10 + 10 * k + number, size) for k in range(count)]


def read_back(clip):
  """The number of the video and the numbers of its frames."""
  levels = clip.astype(float).mean((1, 2, 3)).round().astype(int) - 10
  return levels[0] % 10, (levels // 10).tolist()


class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Example k: 10 + k frames, the class k % 2, the caption 'video k'."""

  VERSION = tfds.core.Version("1.2.0")
  code_path = None  # Otherwise preparing needs importlib_resources.
  FEATURES = lambda: {
    "clip": {"video": Frames(), "id": tfds.features.Text()},
    "label": tfds.features.ClassLabel(names=LABELS),
  }
  FPS = None
  SPLITS = ("train",)

  def _info(self):
    metadata = self.FPS and tfds.core.MetadataDict(fps=self.FPS)
    features = Features(type(self).FEATURES())
    return tfds.core.DatasetInfo(
      builder=self, features=features, metadata=metadata
    )

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples() for name in self.SPLITS}

  def _generate_examples(self):
    for k in range(COUNT):
      yield k, self.example(k)

  def example(self, k):
    clip = {"video": video(k % 10, 10 + k), "id": f"id {k}"}
    return {"clip": clip, "label": k % 2}


class SmallClasses(Small):
  """Captions from classes, and no frame rate."""


class SmallTexts(Small):
  """Several captions and a frame rate for each example."""

  FEATURES = lambda: {
    "video": Frames(),
    "other": Frames(),
    "name": tfds.features.Text(),
    "captions": tfds.features.Sequence(tfds.features.Text()),
    "fps": np.float32,
  }

  def example(self, k):
    captions = [f"video {k}", f" again\n{k} "] if k else [" "]
    return {
      "video": video(k % 10, 10 + k, size=(30, 60) if k % 2 else (24, 32)),
      "other": [],
      "name": "x",
      "captions": captions,
      "fps": 8 if k < 6 else 4,
    }


class SmallSilent(Small):
  """A video and two texts of unknown meaning."""

  FEATURES = lambda: {
    "video": Frames(),
    "fps": tfds.features.Text(),
    "url": tfds.features.Text(),
  }


class SmallNumbers(Small):
  FEATURES = lambda: {"a": np.int32, "b": {"c": tfds.features.Text()}}

  def example(self, k):
    return {"a": k, "b": {"c": "x"}}


class SmallTest(Small):
  SPLITS = ("test", "validation")


class SmallRated(Small):
  FPS = 16


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """The data directory, with prepared builders."""
  folder = tmp_path_factory.mktemp("tfds")
  with contextlib.redirect_stdout(io.StringIO()):
    for kind in (SmallClasses, SmallTexts, SmallTest, SmallRated):
      kind(data_dir=folder).download_and_prepare(file_format="array_record")
  return str(folder)


@pytest.fixture
def open_small(data_dir, tmp_path):
  def open_small(name="small_classes", *specs, **options):
    given = {"data_dir": data_dir, "cache": str(tmp_path / "cache")}
    return open_tfds(name, specs or [SPEC], **given | options)

  return open_small


def test_each_video_is_read(open_small, tmp_path, capsys):
  report = tmp_path / "report.jsonl"
  source = open_small(report_path=report)
  assert "tensorflow" not in sys.modules
  assert len(source) == COUNT
  labels = ["apply eye makeup", "archery"]
  for index, video in enumerate(source.videos):  # The examples are shuffled.
    count = video.info.num_frames
    middle = (count - 4) // 2
    assert read_back(source.clip(index)) == (
      *(count % 10, list(range(middle, middle + 4))),
    )
    assert source.captions(index) == (labels[count % 2],)
  rows = read_report(report)
  assert [row["file"] for row in rows] == [f"train/{k}" for k in range(COUNT)]
  assert (rows[0]["width"], rows[0]["height"]) == (32, 24)
  printed = capsys.readouterr().err
  assert "does not give its frame rate; 8 fps is assumed" in printed
  assert "captions from 'label', for example " in printed
  assert "12 of 12 files in small_classes" in printed


def test_clips_start_anywhere(open_small):
  source = open_small()
  index = [v.info.num_frames for v in source.videos].index(14)
  first = set()
  for seed in range(80):
    clip = source.clip(index, np.random.default_rng(seed))
    assert (clip.shape, clip.dtype) == ((4, 16, 16, 3), np.uint8)
    _, frames = read_back(clip)
    assert np.diff(frames).tolist() == [1, 1, 1]
    first.add(frames[0])
  assert set(range(10)) <= first <= set(range(11))


def test_several_captions_and_frame_rates(open_small, capsys):
  specs = [spec(12), spec(12, 16, 32), spec(4)]
  source = open_small("small_texts", *specs, filters=Filters(min_fps_ratio=0))
  printed = capsys.readouterr().err
  assert "2 videos in an example: video, other; the first" in printed
  assert "does not give its frame rate" not in printed
  shapes = {}
  for index, video in enumerate(source.videos):
    assert video.info.fps == (8 if video.info.num_frames < 16 else 4)
    k = video.info.num_frames - 10
    assert source.captions(index) == (f"video {k}", f"again {k}")
    clip = source.clip(index)
    assert clip.shape == (video.spec.num_frames, *video.spec.resolution, 3)
    assert read_back(clip)[0] == k % 10
    shapes[k] = clip.shape[:3]
  wide, square = (12, 16, 32), (12, 16, 16)
  # 10 and 11 frames at 8 fps are too short for 12; those at 4 fps count twice.
  # Example 0 has no caption.
  assert shapes == {1: (4, 16, 16)} | {
    k: wide if k % 2 else square for k in range(2, COUNT)
  }


def test_slow_examples_are_dropped(open_small, tmp_path, capsys):
  report = tmp_path / "report.jsonl"
  source = open_small("small_texts", report_path=report)
  assert {video.info.fps for video in source.videos} == {8}
  reasons = [row["reason"] or "" for row in read_report(report)]
  slow = sum(reason.startswith("slow: 4 ") for reason in reasons)
  assert slow + len(source) == COUNT - 1  # One has no caption.
  assert f"{slow} slow" in capsys.readouterr().err


def test_frames_are_blended(open_small):
  """16 fps at 6.4: every 2.5th frame, so every other one is in between."""
  nearest = open_small("small_rated", spec(4, fps=6.4))
  blended = open_small("small_rated", spec(4, fps=6.4, resample="blend"))
  video = blended.videos[0]
  whole = open_small("small_rated", spec(video.info.num_frames, fps=16))
  index = [v.file for v in whole.videos].index(video.file)
  frames = whole.clip(index).astype(int)
  for seed in range(5):
    clip = nearest.clip(0, np.random.default_rng(seed))
    part = frames[read_back(clip)[1][0] :]
    mean = lambda k, part=part: (part[k] + part[k + 1]) / 2
    clip = blended.clip(0, np.random.default_rng(seed))
    expected = [part[0], mean(2), part[5], mean(7)]
    np.testing.assert_allclose(clip, expected, atol=0.5)


def test_frame_rate_of_the_builder(open_small, capsys):
  source = open_small("small_rated")
  assert "frame rate" not in capsys.readouterr().err
  _, frames = read_back(source.clip(0))
  assert np.diff(frames).tolist() == [2, 2, 2]  # 16 fps resampled to 8.


def test_probes_are_cached(open_small, monkeypatch):
  first = open_small()
  fail = lambda *args: pytest.fail("probes again")
  monkeypatch.setattr(tfds_builder, "_probe_example", fail)
  again = open_small()
  assert [(v.info, v.captions) for v in again.videos] == [
    (v.info, v.captions) for v in first.videos
  ]
  with pytest.raises(pytest.fail.Exception, match="probes again"):
    open_small("small_rated")


def test_prompts_caption_classes(open_small, tmp_path):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("Archery|a bow\nArchery|an arrow\nApplyEyeMakeup|eyes\n")
  source = open_small(prompts=str(prompts))
  captions = {source.captions(k) for k in range(COUNT)}
  assert captions == {("a bow", "an arrow"), ("eyes",)}
  with pytest.raises(UserError) as error:
    open_small("small_texts", prompts="x")
  assert error.value.field == "config.data.prompts=x:"


def test_damaged_examples_are_reported(open_small, data_dir, tmp_path, capsys):
  folder = shutil.copytree(data_dir, tmp_path / "damaged")
  shard = next(folder.glob("small_classes/*/*.array_record*"))
  data = shard.read_bytes()
  source = open_small(data_dir=str(folder))
  shard.write_bytes(data[:1000] + bytes(1000) + data[2000:])
  capsys.readouterr()
  broken = 0
  for index in range(COUNT):
    try:
      source.clip(index)
    except UnreadableClip:
      broken += 1
  assert 0 < broken < COUNT
  assert capsys.readouterr().err.count("dropped: damaged: Corrupted") == broken
  # Damage is not cached.
  elsewhere = {"data_dir": str(folder), "cache": str(tmp_path / "other")}
  assert len(open_small(**elsewhere)) < COUNT
  shard.write_bytes(data)
  assert len(open_small(**elsewhere)) == COUNT


def test_the_config_opens_it(data_dir, tmp_path, capsys):
  config = DataConfig(
    source="tfds",
    path="small_classes:1.2.0",
    tfds_dir=data_dir,
    cache=str(tmp_path),
    num_frames=4,
    fps=8,
    resolution=16,
  )
  parts = [open_sources(config, seed=0, report=None) for _ in range(2)]
  names = [[{v.file for v in part.videos} for part in split] for split in parts]
  assert names[0] == names[1]
  train, held_out = names[0]
  assert held_out
  assert len(train | held_out) == len(train) + len(held_out) == COUNT
  with pytest.raises(UserError, match=r"config\.data\.path"):
    open_sources(dataclasses.replace(config, path=""), seed=0, report=None)
  filtered = dataclasses.replace(config, min_motion=1.0, scene_cuts=9.0)
  capsys.readouterr()
  open_sources(filtered, seed=0, report=None)
  printed = capsys.readouterr().err
  assert "config.data.min_motion=1 has no effect" in printed
  assert "config.data.scene_cuts=9 has no effect" in printed


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("small_clases", r'no such builder \(did you mean "small_classes"\?\)'),
    ("small_classes/big", "small_classes/big: .*BuilderConfig big not found"),
    ("small_classes:9.0.0", "cannot be loaded at version 9.0.0, only: 1.2.0"),
    ("small classes", "small classes: Parsing builder name"),
    ("small_numbers", r"no video .*\(a: Tensor, b/c: Text\)"),
    ("mnist", r"no video .*\(image: Image, label: ClassLabel\)"),
    ("small_silent", "no captions .*video: Frames, fps: Text, url: Text"),
    ("small_test", "no split 'train'; it has test, validation"),
  ],
)
def test_unusable_builders(open_small, monkeypatch, name, message):
  monkeypatch.setattr(tfds_builder, "_needs_tensorflow", lambda: "")
  with pytest.raises(UserError, match=message) as error:
    open_small(name)
  assert error.value.field == f"config.data.path={name}:"
  assert "\n" not in str(error.value)


def test_the_error_gives_the_command_to_prepare(open_small, tmp_path):
  message = (
    f"not prepared in {tmp_path}/small_classes/1.2.0; prepare it: python -c .*"
    rf"builder\('small_classes', data_dir='{tmp_path}'\)\.download_and_prepare"
    r"\(file_format='array_record'\)"
  )
  with pytest.raises(UserError, match=message):
    open_small(data_dir=str(tmp_path))


def test_missing_packages_are_named(open_small, monkeypatch):
  def needs_tensorflow():
    raise ImportError("No module named 'tensorflow'")

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(SmallClasses, "FEATURES", needs_tensorflow)
  for name in ("small_classes", "an_unknown_builder"):
    with pytest.raises(UserError, match=r"TensorFlow.* tensorflow$"):
      open_small(name)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match="pip install tensorflow-datasets"):
    open_small()


def test_decoded_examples(monkeypatch, open_small):
  """Like those of `tfds.testing.mock_data`."""
  levels = np.arange(10, dtype=np.uint8)[:, None, None, None] * 10 + 10
  examples = [
    {"clip": {"video": np.broadcast_to(levels, (10, 24, 32, n))}, "label": 1}
    for n in (1, 3)
  ]
  monkeypatch.setattr(
    SmallClasses, "as_data_source", lambda self, **kwargs: examples
  )
  source = open_small(data_dir="/nowhere")
  for index in range(2):
    assert read_back(source.clip(index)) == (0, [3, 4, 5, 6])


def test_mock_ucf101(tmp_path, capsys):
  """The real builder with mock examples."""
  pytest.importorskip("tensorflow", reason="the Video feature needs it")
  folder = str(tmp_path)
  with tfds.testing.mock_data(num_examples=6):
    source = open_tfds("ucf101/ucf101_1", [SPEC], data_dir=folder, cache=folder)
    clips = [source.clip(k) for k in range(len(source))]
    captions = [source.captions(k) for k in range(len(source))]
  assert "6 of 6" in capsys.readouterr().err
  assert {clip.shape for clip in clips} == {(4, 16, 16, 3)}
  assert all(len(texts) == 1 and texts[0].islower() for texts in captions)


def test_tensorflow_is_not_needed(open_small):
  open_small().clip(0)
  assert "tensorflow" not in sys.modules


def test_the_split_is_stable(open_small):
  parts = [open_small().split(0.3) for _ in range(2)]
  names = [[{v.file for v in part.videos} for part in split] for split in parts]
  assert names[0] == names[1]
  train, held_out = names[0]
  assert held_out
  assert not train & held_out
  assert len(train | held_out) == COUNT
  assert parts[0][1].clip(0).shape == (4, 16, 16, 3)


def test_short_examples_are_dropped(open_small, tmp_path, capsys):
  report = tmp_path / "report.jsonl"
  source = open_small("small_classes", spec(15), report_path=report)
  assert "dropped 5 too short" in capsys.readouterr().err
  reasons = [row["reason"] for row in read_report(report) if not row["used"]]
  assert len(reasons) == 5
  assert all(reason.startswith("too short: 1.") for reason in reasons)
  lengths = [v.info.num_frames for v in source.videos]
  assert sorted(lengths) == list(range(15, 22))
  for index, count in enumerate(lengths):
    assert read_back(source.clip(index))[0] == count % 10
