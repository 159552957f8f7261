"""Prepared clips match those of files; damaged folders are reported."""

import json
import shutil

import av
import numpy as np
import pytest

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.filters import Filters
from lumiere_jax.data.manifest import NAME
from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.data.sources.base import UnreadableClip
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.prepared import open_prepared
from lumiere_jax.data.sources.registry import open_sources, open_text_shards
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import encode_clip, write_video
from tests.data.fakes import FakeEncoder
from tests.data.videos import (
  SPEC,
  frame_numbers,
  make,
  read_report,
  spec,
  write_jsonl,
)
from tests.media.test_video_writer import moving

SHARD = "clips-00000.array_record"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  make(folder, "a.mp4")
  make(folder, "b.mp4", seconds=3)
  make(folder, "short.mp4", seconds=0.25)
  (folder / "wide.mp4").write_bytes(encode_clip(moving(30, 24, 64), 8))
  captions = {
    "a.mp4": ["video a", "the first"],
    "b.mp4": ["video b"],
    "short.mp4": ["short"],
    "wide.mp4": ["wide", "moving"],
  }
  write_jsonl(folder, captions)
  return folder


def run(folder, out, encoder=None, **options):
  """Prepares a folder."""
  options = {"fps": 8, "side": 24} | options
  prepare(Options(input=str(folder), out=str(out), **options), encoder)
  return out


@pytest.fixture(scope="module")
def original(videos, tmp_path_factory):
  return run(videos, tmp_path_factory.mktemp("prepared"), FakeEncoder())


@pytest.fixture
def folder(original, tmp_path):
  """A copy that a test may change."""
  return shutil.copytree(original, tmp_path / "prepared")


def config(path, **changes):
  values = {"source": "prepared", "num_frames": 4, "fps": 8, "resolution": 16}
  return DataConfig(path=str(path), **values | changes)


def test_clips_match_those_of_files(videos, original):
  """The same draws give the same frames, the same crop, similar pixels."""
  specs = [SPEC, spec(6, 24, 60)]
  files = FilesSource.open(videos, specs)
  stored = open_prepared(original, specs)
  assert len(stored) == len(files) == 3
  assert stored.groups == files.groups
  for index, video in enumerate(files.videos):
    assert stored.captions(index) == files.captions(index)
    assert stored.videos[index].file == video.file
    for seed in range(20):
      rng = lambda seed=seed: np.random.default_rng(seed) if seed else None
      ours, theirs = stored.clip(index, rng()), files.clip(index, rng())
      assert ours.shape == theirs.shape
      assert ours.dtype == np.uint8
      if video.file != "wide.mp4":
        assert frame_numbers(ours) == frame_numbers(theirs)
      error = np.abs(ours.astype(int) - theirs).mean()
      assert error < 4, (video.file, seed)


@pytest.mark.parametrize("size", [(30, 44), (30, 46), (44, 30), (46, 30)])
def test_the_centre_stays_in_place(tmp_path, size, rng):
  """They shrink to 24 x 35 and 37 pixels; H.264 needs even sizes."""
  noise = rng.integers(0, 256, (1, *size, 1)).astype(np.uint8)
  videos = tmp_path / "videos"
  video = np.broadcast_to(noise, (8, *size, 3))
  write_video(videos / "x.mp4", video, 8, crf=1)
  write_jsonl(videos, ["x.mp4"])
  out, shape = run(videos, tmp_path / "out", crf=1), [spec(4, 24, 24)]
  ours = open_prepared(out, shape).clip(0).astype(int)
  theirs = FilesSource.open(videos, shape).clip(0)
  assert np.abs(ours - theirs).mean() < 2


def test_frame_rates_may_differ(original, capsys):
  slow = open_prepared(original, [spec(4, fps=4)])
  assert np.diff(frame_numbers(slow.clip(0))).tolist() == [2, 2, 2]
  assert "frames repeat" not in capsys.readouterr().err
  fast = [spec(4, fps=16)]
  with pytest.raises(UserError, match=r"4 slow .*: 8 frames"):
    open_prepared(original, fast)
  source = open_prepared(original, fast, filters=Filters(min_fps_ratio=0))
  steps = np.diff(frame_numbers(source.clip(0)))
  assert sorted(steps) in ([0, 0, 1], [0, 1, 1])
  printed = capsys.readouterr().err
  assert "prepared at 8 fps; at 16 fps frames repeat" in printed


def test_nothing_is_decoded_to_open(original, monkeypatch):
  monkeypatch.setattr(av, "open", lambda *args, **kwargs: pytest.fail("opens"))
  assert len(open_prepared(original, [SPEC])) == 3


def test_unusable_clips_are_reported(original, tmp_path, capsys):
  report, large = tmp_path / "report.jsonl", [spec(4, 40, 40)]
  enlarge = lambda by: Filters(max_enlarge=by)
  open_prepared(original, large, report_path=report, filters=enlarge(1.7))
  assert "dropped 1 too short" in capsys.readouterr().err
  dropped = [row["file"] for row in read_report(report) if not row["used"]]
  assert dropped == ["short.mp4"]
  with pytest.raises(UserError, match=r"none of 4 files .*4 too small"):
    open_prepared(original, large, filters=enlarge(1.6))


def test_clips_of_a_video_stay_together(videos, tmp_path, capsys):
  out = run(videos, tmp_path, side=16, max_seconds=0.5)
  report = tmp_path / "report.jsonl"
  source = open_prepared(out, [SPEC], report_path=report)
  assert "19 parts of 4 files" in capsys.readouterr().err
  train, held_out = source.split(0.5)
  files = [{v.file for v in part.videos} for part in (train, held_out)]
  assert not files[0] & files[1]
  row = read_report(report)[1]
  assert (row["start_s"], row["end_s"]) == (0.5, 1.0)
  assert frame_numbers(source.clip(1)) == [4, 5, 6, 7]


def test_pictures_are_clips_of_one_frame(videos, tmp_path, rng):
  pictures = tmp_path / "pictures"
  write_image(pictures / "x.png", rng.integers(0, 256, (30, 44, 3), np.uint8))
  write_jsonl(pictures, ["x.png"])
  out = run(pictures, tmp_path / "out", side=64, fps=16)
  shape = [spec(1, fps=16)]
  ours, theirs = open_prepared(out, shape), FilesSource.open(pictures, shape)
  assert np.array_equal(ours.clip(0), theirs.clip(0))
  mixed = config(videos, source="files", images=str(out))
  train, _ = open_sources(mixed, seed=0, report=None)
  assert train.clip(len(train) - 1).shape == (1, 16, 16, 3)
  assert len(open_text_shards(mixed)) == 1


def test_the_config_opens_it(original, tmp_path):
  train, held_out = open_sources(
    config(original), seed=0, report=tmp_path / "r.jsonl"
  )
  assert (len(train), len(held_out)) == (2, 1)
  (shards,) = open_text_shards(config(original))
  encoder = FakeEncoder()
  for index in range(len(train)):
    for caption in train.captions(index):
      found = shards.find(encoder.identity, caption)
      for ours, theirs in zip(found, encoder.features([caption]), strict=True):
        assert np.array_equal(ours, theirs[0])
  assert open_text_shards(config(original, source="files")) == ()


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("path", "", "lumiere_jax.prepare made"),
    ("prompts", "x", "is for folders"),
  ],
)
def test_unusable_configs(original, field, value, words):
  changed = config(**{"path": original} | {field: value})
  with pytest.raises(UserError, match=words) as error:
    open_sources(changed, seed=0, report=None)
  assert error.value.field == f"config.data.{field}"


def test_filters_that_were_not_applied_are_reported(tmp_path, capsys):
  videos = tmp_path / "videos"
  for k in range(2):
    make(videos, f"{k}.mp4")
  write_jsonl(videos, ["0.mp4", "1.mp4"])
  out = run(videos, tmp_path / "out", side=16, min_motion=1.0)
  capsys.readouterr()
  filtered = config(out, min_motion=0.5, scene_cuts=10.0)
  open_sources(filtered, seed=0, report=None)
  printed = capsys.readouterr().err
  assert "without scene_cuts, so config.data.scene_cuts=10 has no" in printed
  assert "min_motion" not in printed


def test_a_remote_folder_is_copied(original, remote, tmp_path):
  remote.put(str(original), "/prepared", recursive=True)
  there = config("memory://prepared", cache=str(tmp_path / "cache"))
  train, _ = open_sources(there, seed=0, report=None)
  (shards,) = open_text_shards(there)
  assert shards.find(FakeEncoder().identity, "video b") is not None
  remote.rm("/prepared", recursive=True)
  assert train.clip(0).shape == (4, 16, 16, 3)


def edit(folder, change):
  values = json.loads((folder / NAME).read_text())
  change(values)
  (folder / NAME).write_text(json.dumps(values))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda f: (f / NAME).unlink(), "prepared: unfinished: clips but no prep"),
    (
      lambda f: (f / SHARD).unlink(),
      "prepared: 4 of 4 clips are missing .*a.m",
    ),
    (lambda f: (f / SHARD).write_bytes(b"torn" * 99), f"{SHARD}: damaged"),
    (
      lambda f: edit(f, lambda v: v.update(version=2)),
      f"{NAME}: version 2 .* newer lumiere_jax",
    ),
    (lambda f: (f / NAME).write_bytes(b'{"version": 1'), f"{NAME}: broken"),
    (lambda f: (f / NAME).write_bytes(b"[]"), f"{NAME}: broken"),
    (
      lambda f: edit(f, lambda v: v["clips"][0].pop("key")),
      f"{NAME}: broken .*key",
    ),
  ],
)
def test_damaged_folders(folder, damage, message):
  damage(folder)
  with pytest.raises(UserError, match=message):
    open_prepared(folder, [SPEC])


def test_folders_that_are_not_prepared(tmp_path):
  with pytest.raises(UserError, match="gone: no such folder"):
    open_prepared(tmp_path / "gone", [SPEC])
  with pytest.raises(UserError, match=f"not a prepared folder.*out={tmp_path}"):
    open_prepared(tmp_path, [SPEC])


def test_a_damaged_clip_is_dropped(folder, tmp_path, capsys):
  report = tmp_path / "report.jsonl"
  source = open_prepared(folder, [SPEC], report_path=report)
  shard = bytearray((folder / SHARD).read_bytes())
  shard[shard.index(source.videos[0].records[source.videos[0].key][-50:])] ^= 1
  (folder / SHARD).write_bytes(shard)
  again = open_prepared(folder, [SPEC], report_path=report)
  capsys.readouterr()
  for _ in range(2):
    with pytest.raises(UnreadableClip, match=r"a\.mp4"):
      again.clip(0)
  assert again.clip(1).shape == (4, 16, 16, 3)
  assert capsys.readouterr().err.count("a.mp4 dropped: damaged") == 1
  assert not read_report(report)[-1]["used"]


def test_clips_start_on_any_frame(original):
  source = open_prepared(original, [SPEC])
  first = set()
  for seed in range(100):
    numbers = frame_numbers(source.clip(0, np.random.default_rng(seed)))
    assert np.diff(numbers).tolist() == [1, 1, 1]
    first.add(numbers[0])
  assert set(range(12)) <= first <= set(range(13))
  assert frame_numbers(source.clip(0)) == [6, 7, 8, 9]


def test_the_split_is_that_of_files(videos, original):
  for fraction in (0.01, 0.5, 0.9):
    parts = FilesSource.open(videos, [SPEC]).split(fraction)
    ours = open_prepared(original, [SPEC]).split(fraction)
    for mine, theirs in zip(ours, parts, strict=True):
      assert [v.file for v in mine.videos] == [v.file for v in theirs.videos]
      for index in range(len(mine)):
        assert mine.clip(index).shape == (4, 16, 16, 3)
