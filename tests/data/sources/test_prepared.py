"""Prepared clips: as those of files, and what can be wrong with a folder."""

import json

import av
import fsspec
import numpy as np
import pytest

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.manifest import NAME
from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.data.sources.base import ClipSpec, UnreadableClip
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.prepared import open_prepared
from lumiere_jax.data.sources.registry import open_sources, text_shelves
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import write_image
from lumiere_jax.media.video_writer import encode_clip, write_video
from tests.data.test_text_shelf import Encoder
from tests.data.videos import SPEC, frame_numbers, make, write_jsonl
from tests.media.test_video_writer import moving

SHARD = "clips-00000.array_record"


CAPTIONS = {
  "a.mp4": ["video a", "the first"],
  "b.mp4": ["video b"],
  "short.mp4": ["short"],
  "wide.mp4": ["wide", "moving"],
}


def write_captions(folder, captions):
  rows = [{"file": f, "captions": c} for f, c in captions.items()]
  lines = map(json.dumps, rows)
  (folder / "captions.jsonl").write_text("\n".join(lines))


def write_bytes(path, data):
  path.write_bytes(data)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  make(folder, "a.mp4")
  make(folder, "b.mp4", seconds=3)
  make(folder, "short.mp4", seconds=0.25)
  write_bytes(folder / "wide.mp4", encode_clip(moving(30, 24, 64), 8))
  write_captions(folder, CAPTIONS)
  return folder


@pytest.fixture(scope="module")
def original(videos, tmp_path_factory):
  folder = tmp_path_factory.mktemp("prepared")
  options = Options(input=str(videos), out=str(folder), fps=8, side=24)
  prepare(options, Encoder())
  return folder


@pytest.fixture
def folder(original, tmp_path):
  """A copy that a test may change."""
  folder = tmp_path / "prepared"
  for path in original.rglob("*"):
    if path.is_file():
      copy = folder / path.relative_to(original)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(path.read_bytes())
  return folder


def specs(*shapes, fps=8):
  return [
    ClipSpec(num_frames=t, fps=fps, resolution=(h, w)) for t, h, w in shapes
  ]


def test_clips_are_those_of_files(videos, original):
  """The same draws give the same frames, the same crop, near enough pixels."""
  shapes = specs((4, 16, 16), (6, 24, 60))
  files = FilesSource.open(videos, shapes)
  stored = open_prepared(original, shapes)
  assert len(stored) == len(files) == 3
  assert stored.groups == files.groups
  for index, video in enumerate(files.videos):
    assert stored.captions(index) == files.captions(index)
    assert stored.videos[index].file == video.file
    for seed in (None, *range(1, 20)):
      ours, theirs = (
        source.clip(
          index, None if seed is None else np.random.default_rng(seed)
        )
        for source in (stored, files)
      )
      assert ours.shape == theirs.shape
      assert ours.dtype == np.uint8
      if video.file != "wide.mp4":
        assert frame_numbers(ours) == frame_numbers(theirs)
      error = np.abs(ours.astype(int) - theirs).mean()
      assert error < 4, (video.file, seed)


@pytest.mark.parametrize("size", [(30, 44), (30, 46), (44, 30), (46, 30)])
def test_the_middle_stays_in_the_middle(tmp_path, size, rng):
  """They shrink to 24 x 35 and 37 pixels; H.264 needs even sizes."""
  noise = rng.integers(0, 256, (1, *size, 1)).astype(np.uint8)
  videos, out = tmp_path / "videos", tmp_path / "out"
  video = np.broadcast_to(noise, (8, *size, 3))
  write_video(videos / "x.mp4", video, 8, crf=1)
  write_captions(videos, {"x.mp4": ["x"]})
  prepare(Options(input=str(videos), out=str(out), fps=8, side=24, crf=1))
  shape = specs((4, 24, 24))
  ours = open_prepared(out, shape).clip(0).astype(int)
  theirs = FilesSource.open(videos, shape).clip(0)
  assert np.abs(ours - theirs).mean() < 2


def test_clips_start_on_any_frame(original):
  source = open_prepared(original, [SPEC])
  first = set()
  for seed in range(100):
    numbers = frame_numbers(source.clip(0, np.random.default_rng(seed)))
    assert np.diff(numbers).tolist() == [1, 1, 1]
    first.add(numbers[0])
  assert first >= set(range(12))
  assert max(first) <= 12
  assert frame_numbers(source.clip(0)) == [6, 7, 8, 9]


def test_frame_rates_may_differ(original, capsys):
  slow = open_prepared(original, specs((4, 16, 16), fps=4))
  assert np.diff(frame_numbers(slow.clip(0))).tolist() == [2, 2, 2]
  assert "more than once" not in capsys.readouterr().err
  message = "4 slow .*: 8 frames a second, clips have 16"
  with pytest.raises(UserError, match=message):
    open_prepared(original, specs((4, 16, 16), fps=16))
  fast = open_prepared(original, specs((4, 16, 16), fps=16), min_fps_ratio=0)
  assert sorted(np.diff(frame_numbers(fast.clip(0)))) in ([0, 0, 1], [0, 1, 1])
  said = capsys.readouterr().err
  assert "prepared at 8 fps: at 16 fps frames come more than once" in said


def test_nothing_is_decoded_to_open(original, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("decodes")

  monkeypatch.setattr(av, "open", refuse)
  assert len(open_prepared(original, [SPEC])) == 3


def test_parted_as_files_are(videos, original):
  for fraction in (0.01, 0.5, 0.9):
    parts = FilesSource.open(videos, [SPEC]).split(fraction)
    ours = open_prepared(original, [SPEC]).split(fraction)
    for mine, theirs in zip(ours, parts, strict=True):
      assert [v.file for v in mine.videos] == [v.file for v in theirs.videos]
      for index in range(len(mine)):
        assert mine.clip(index).shape == (4, 16, 16, 3)


def test_what_cannot_be_used_is_reported(original, tmp_path, capsys):
  report = tmp_path / "report.jsonl"
  open_prepared(
    original, specs((4, 40, 40)), report_path=report, max_enlarge=1.7
  )
  assert "dropped 1 too short" in capsys.readouterr().err
  rows = [json.loads(line) for line in report.read_text().splitlines()]
  assert [row["file"] for row in rows if not row["used"]] == ["short.mp4"]
  with pytest.raises(UserError, match=r"none of 4 files .*4 too small"):
    open_prepared(original, specs((4, 40, 40)), max_enlarge=1.6)


def test_parts_of_a_video_stay_together(videos, tmp_path, capsys):
  prepare(
    Options(
      input=str(videos), out=str(tmp_path), fps=8, side=16, max_seconds=0.5
    )
  )
  report = tmp_path / "report.jsonl"
  source = open_prepared(tmp_path, [SPEC], report_path=report)
  assert "19 parts of 4 files" in capsys.readouterr().err
  train, held_out = source.split(0.5)
  names = [{v.file for v in part.videos} for part in (train, held_out)]
  assert not names[0] & names[1]
  row = json.loads(report.read_text().splitlines()[1])
  assert (row["start_s"], row["end_s"]) == (0.5, 1.0)
  assert frame_numbers(source.clip(1)) == [4, 5, 6, 7]


def test_pictures_are_clips_of_one_frame(videos, tmp_path, rng):
  picture = rng.integers(0, 256, (30, 44, 3), np.uint8)
  pictures, out = tmp_path / "pictures", tmp_path / "out"
  write_image(pictures / "x.png", picture)
  write_captions(pictures, {"x.png": ["noise"]})
  prepare(Options(input=str(pictures), out=str(out), side=64))
  shape = specs((1, 16, 16), fps=16)
  ours, theirs = open_prepared(out, shape), FilesSource.open(pictures, shape)
  assert np.array_equal(ours.clip(0), theirs.clip(0))
  config = DataConfig(
    source="files",
    path=str(videos),
    images=str(out),
    num_frames=4,
    fps=8,
    resolution=16,
  )
  mix, _ = open_sources(config, seed=0, report=None)
  assert mix.clip(len(mix) - 1).shape == (1, 16, 16, 3)
  assert len(text_shelves(config)) == 1


def test_the_config_opens_it(original, tmp_path):
  config = DataConfig(
    source="prepared", path=str(original), num_frames=4, fps=8, resolution=16
  )
  train, held_out = open_sources(config, seed=0, report=tmp_path / "r.jsonl")
  assert (len(train), len(held_out)) == (2, 1)
  (shelf,) = text_shelves(config)
  encoder = Encoder()
  for index in range(len(train)):
    for caption in train.captions(index):
      text, mask = shelf.find(encoder.identity, caption)
      expected = encoder.features([caption])
      assert np.array_equal(text, expected[0][0])
      assert np.array_equal(mask, expected[1][0])
  assert text_shelves(DataConfig(source="files", path=str(original))) == ()


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"path": ""}, "path is missing; give a folder that lumiere_jax.prepare"),
    ({"prompts": "x"}, "prompts is for folders of videos"),
  ],
)
def test_what_only_prepare_can_do(original, values, message):
  config = DataConfig(**{"source": "prepared", "path": str(original)} | values)
  with pytest.raises(UserError, match=message):
    open_sources(config, seed=0, report=None)


def test_filters_that_prepare_did_not_apply_are_reported(tmp_path, capsys):
  videos, out = tmp_path / "videos", tmp_path / "out"
  for k in range(2):
    make(videos, f"{k}.mp4")
  write_jsonl(videos, {f"{k}.mp4": "x" for k in range(2)})
  prepare(
    Options(input=str(videos), out=str(out), fps=8, side=16, min_motion=1.0)
  )
  capsys.readouterr()
  config = DataConfig(
    source="prepared",
    path=str(out),
    num_frames=4,
    fps=8,
    resolution=16,
    min_motion=0.5,
    scene_cuts=10.0,
  )
  open_sources(config, seed=0, report=None)
  said = capsys.readouterr().err
  assert "prepared without --scene_cuts" in said
  assert "--min_motion" not in said


def test_a_remote_folder_is_copied(original, tmp_path):
  remote = fsspec.filesystem("memory")
  remote.put(str(original), "/prepared", recursive=True)
  config = DataConfig(
    source="prepared",
    path="memory://prepared",
    cache=str(tmp_path / "cache"),
    num_frames=4,
    fps=8,
    resolution=16,
  )
  train, _ = open_sources(config, seed=0, report=None)
  (shelf,) = text_shelves(config)
  assert shelf.find(Encoder().identity, "video b") is not None
  remote.rm("/prepared", recursive=True)
  assert train.clip(0).shape == (4, 16, 16, 3)


def edit(folder, change):
  values = json.loads((folder / NAME).read_text())
  change(values)
  (folder / NAME).write_text(json.dumps(values))


def remove(name):
  return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (remove(NAME), "prepared: unfinished: clips but no prepared.json; run aga"),
    (remove(SHARD), "prepared: 4 of 4 clips are in none of its shards .*a.mp4"),
    (
      lambda folder: write_bytes(folder / SHARD, b"torn" * 99),
      "clips-00000.array_record: damaged",
    ),
    (
      lambda folder: edit(folder, lambda v: v.update(version=2)),
      "prepared.json: version 2, made by a newer lumiere_jax",
    ),
    (
      lambda folder: write_bytes(folder / NAME, b'{"version": 1'),
      "prepared.json: broken",
    ),
    (
      lambda folder: write_bytes(folder / NAME, b"[]"),
      "prepared.json: broken",
    ),
    (
      lambda folder: edit(folder, lambda v: v["clips"][0].pop("key")),
      "prepared.json: broken .*key",
    ),
  ],
)
def test_folders_that_are_not_whole(folder, damage, message):
  damage(folder)
  with pytest.raises(UserError, match=message):
    open_prepared(folder, [SPEC])


def test_folders_that_are_none(tmp_path):
  with pytest.raises(UserError, match="gone: no such folder"):
    open_prepared(tmp_path / "gone", [SPEC])
  with pytest.raises(UserError, match=f"not a prepared folder.*out={tmp_path}"):
    open_prepared(tmp_path, [SPEC])


def test_a_clip_that_is_damaged_is_dropped(folder, tmp_path, capsys):
  report = tmp_path / "report.jsonl"
  source = open_prepared(folder, [SPEC], report_path=report)
  shard = (folder / SHARD).read_bytes()
  place = shard.index(source.videos[0].records[source.videos[0].key][-50:])
  flipped = bytes([shard[place] ^ 1])
  (folder / SHARD).write_bytes(shard[:place] + flipped + shard[place + 1 :])
  again = open_prepared(folder, [SPEC], report_path=report)
  capsys.readouterr()
  for _ in range(2):
    with pytest.raises(UnreadableClip, match=r"a\.mp4"):
      again.clip(0)
  assert again.clip(1).shape == (4, 16, 16, 3)
  assert capsys.readouterr().err.count("a.mp4 dropped: damaged") == 1
  assert '"used": false' in report.read_text().splitlines()[-1]
