"""Preparing: what is stored, what is done again, and what can go wrong."""

import dataclasses
import functools
import json
import resource

import numpy as np
import pytest

from lumiere_jax.data import preprocess as module
from lumiere_jax.data.manifest import CLIPS, read_manifest
from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.video_reader import probe, read_clip
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.remote import Folder
from tests.data.test_text_shelf import Encoder
from tests.data.videos import frame_numbers, make, write_jsonl

NAMES = [f"{k}.mp4" for k in range(4)]


@pytest.fixture
def videos(tmp_path):
  folder = tmp_path / "videos"
  for k, name in enumerate(NAMES):
    make(folder, name, seconds=2 + k / 8)
  write_jsonl(folder, {name: f"video {name}" for name in NAMES})
  return folder


@pytest.fixture
def options(videos, tmp_path):
  return Options(
    input=str(videos), out=str(tmp_path / "out"), fps=8, side=16, threads=2
  )


@pytest.fixture
def encoded(monkeypatch):
  """The files whose parts have been encoded, in the order of their end."""
  seen, encode = [], module._try_encode

  def spy(part, options):
    seen.append(part.stored.file)
    return encode(part, options)

  monkeypatch.setattr(module, "_try_encode", spy)
  return seen


def change(options, **values):
  return dataclasses.replace(options, **values)


def manifest(options):
  return read_manifest(Folder(options.out))


def stored(options):
  return dict(Records(Folder(options.out), CLIPS))


def state(options):
  """All files but the report, which says how each run went."""
  paths = sorted(module.Path(options.out).rglob("*"))
  return {
    path: (path.stat().st_mtime_ns, path.read_bytes())
    for path in paths
    if path.is_file() and path.name != module.REPORT
  }


def prepared_json(options):
  return module.Path(options.out, "prepared.json").read_bytes()


def test_each_video_is_stored_small(options, capsys):
  prepare(options)
  found, blobs = manifest(options), stored(options)
  assert [clip.file for clip in found.clips] == NAMES
  assert found.options["fps"] == 8
  assert found.text == ""
  for k, clip in enumerate(found.clips):
    assert clip.captions == (f"video {k}.mp4",)
    assert (clip.frames, clip.height, clip.width) == (16 + k, 16, 20)
    blob = InMemoryFile("x", blobs[clip.key])
    info = probe(blob)
    assert (info.num_frames, info.height, info.width) == (16 + k, 16, 20)
    assert info.fps == pytest.approx(8)
    pixels = read_clip(blob, start_s=0, num_frames=16 + k, fps=8)
    assert frame_numbers(pixels) == list(range(16 + k))
  rows = module.Path(options.out, module.REPORT).read_text().splitlines()
  assert len(rows) == 4
  said = capsys.readouterr().err
  assert "4 clips in" in said
  assert "4 of them new" in said
  assert "70/70" in said  # frames


def test_nothing_is_enlarged_and_time_is_resampled(options):
  options = change(options, side=999, fps=4)
  prepare(options)
  clip = manifest(options).clips[0]
  assert (clip.frames, clip.height, clip.width) == (8, 24, 32)
  blob = InMemoryFile("x", stored(options)[clip.key])
  pixels = read_clip(blob, start_s=0, num_frames=8, fps=4)
  assert frame_numbers(pixels) == list(range(0, 16, 2))


def test_the_same_input_gives_the_same_bytes(options, tmp_path):
  prepare(options)
  again = change(options, out=str(tmp_path / "again"), threads=1)
  prepare(again)
  assert prepared_json(again) == prepared_json(options)
  assert stored(again) == stored(options)


def test_a_second_run_does_nothing(options, encoded, capsys):
  prepare(options)
  encoded.clear()
  before = state(options)
  capsys.readouterr()
  prepare(options)
  assert state(options) == before
  assert encoded == []
  said = capsys.readouterr().err
  assert "4 clips in" in said
  assert "0 of them new" in said
  assert "preparing" not in said


class Killed(BaseException):
  pass


@pytest.mark.parametrize("moment", range(5))
def test_a_killed_run_goes_on(options, encoded, monkeypatch, moment):
  """Killed at each clip, and before prepared.json: shards of one clip."""
  prepare(change(options, out=options.out + "-whole"))
  expected = prepared_json(change(options, out=options.out + "-whole"))
  writer = functools.partial(RecordWriter, shard_bytes=1)
  monkeypatch.setattr(module, "RecordWriter", writer)
  with monkeypatch.context() as patch:
    patch.setattr(RecordWriter, "__exit__", lambda self, *error: None)
    kept, count = RecordWriter.__setitem__, iter(range(9))

    def keep(writer, key, value):
      if next(count) == moment:
        raise Killed
      kept(writer, key, value)

    def stop(*args):
      raise Killed

    patch.setattr(RecordWriter, "__setitem__", keep)
    patch.setattr(module.Manifest, "write", stop)
    with pytest.raises(Killed):
      prepare(options)
  message = "unfinished: .* run again" if moment else "not a prepared folder"
  with pytest.raises(UserError, match=message):
    manifest(options)
  assert len(stored(options)) == moment
  encoded.clear()
  prepare(options)
  assert len(encoded) == 4 - moment
  assert prepared_json(options) == expected


def test_only_a_changed_file_is_done_again(options, videos, encoded, capsys):
  prepare(options)
  before = manifest(options).clips
  make(videos, "1.mp4", seconds=3)
  encoded.clear()
  prepare(options)
  assert encoded == ["1.mp4"]
  after = manifest(options).clips
  same = [old == new for old, new in zip(before, after, strict=True)]
  assert same == [True, False, True, True]
  assert after[1].frames == 24
  assert "1 clips of earlier runs" in capsys.readouterr().err


def test_other_options_are_other_clips(options, encoded):
  prepare(options)
  for changed in ({"crf": 30}, {"side": 8}, {"fps": 4}):
    encoded.clear()
    prepare(change(options, **changed))
    assert sorted(encoded) == NAMES
  sizes = [len(stored(options)[c.key]) for c in manifest(options).clips]
  prepare(options)
  assert sizes < [len(stored(options)[c.key]) for c in manifest(options).clips]
  encoded.clear()
  prepare(change(options, threads=3, num_frames=2))
  assert encoded == []


def test_a_copy_is_stored_once(options, videos, encoded):
  (videos / "copy.mp4").write_bytes((videos / "0.mp4").read_bytes())
  write_jsonl(videos, {"0.mp4": "a", "copy.mp4": "b"})
  prepare(options)
  clips = manifest(options).clips
  assert [clip.captions for clip in clips] == [("a",), ("b",)]
  assert clips[0].key == clips[1].key
  assert encoded == ["0.mp4"] or encoded == ["copy.mp4"]


def test_new_captions_are_all_that_is_encoded(options, videos, encoded):
  encoder = Encoder()
  prepare(options, encoder)
  assert manifest(options).text == encoder.identity
  text = module.Path(options.out, "text", encoder.identity)
  name = f"text/{encoder.identity}/text"
  assert len(Records(Folder(options.out), name)) == 4
  encoded.clear()
  captions = {name: f"video {name}" for name in NAMES} | {"2.mp4": "a dog"}
  write_jsonl(videos, captions)
  prepare(options, encoder)
  assert encoded == []
  assert manifest(options).clips[2].captions == ("a dog",)
  assert len(list(text.iterdir())) == 2
  assert len(Records(Folder(options.out), name)) == 5


def test_long_videos_are_parted_evenly(options, videos):
  make(videos, "long.mp4", seconds=2.5)  # 20 frames
  write_jsonl(videos, {"long.mp4": "long"})
  prepare(change(options, max_seconds=1))
  clips = manifest(change(options)).clips
  assert [clip.start_s for clip in clips] == pytest.approx([0, 2.5 / 3, 5 / 3])
  assert {clip.seconds for clip in clips} == {2.5 / 3}
  numbers = []
  for clip in clips:
    blob = InMemoryFile("x", stored(options)[clip.key])
    part = read_clip(blob, start_s=0, num_frames=clip.frames, fps=8)
    numbers.append(frame_numbers(part))
  assert [part[0] for part in numbers] == [0, 6, 13]
  assert all(np.diff(part).tolist() == [1] * 6 for part in numbers)
  prepare(change(options, max_seconds=1, num_frames=10))
  assert len(manifest(options).clips) == 2
  prepare(change(options, max_seconds=0))
  assert len(manifest(options).clips) == 1


def test_pictures_lose_nothing(options, videos, rng):
  picture = rng.integers(0, 256, (12, 40, 3), np.uint8)
  write_image(videos / "x.png", picture)
  write_jsonl(videos, {"x.png": "noise", "0.mp4": "video"})
  prepare(options)
  clip = manifest(options).clips[1]
  assert (clip.seconds, clip.frames) == (0, 1)
  blob = InMemoryFile("x", stored(options)[clip.key])
  assert np.array_equal(read_image(blob), picture)
  prepare(change(options, num_frames=2))
  assert [clip.file for clip in manifest(options).clips] == ["0.mp4"]


def test_files_that_vanish_are_named(options, videos, monkeypatch, capsys):
  """One after it was probed, one after that while others are encoded."""
  opened, identify = module.FilesSource.open, module._identify

  def vanish(*args, **kwargs):
    source = opened(*args, **kwargs)
    (videos / "1.mp4").unlink()
    return source

  def cut_short(source, index):
    found = identify(source, index)
    if source.videos[index].file == "2.mp4":
      (videos / "2.mp4").write_bytes(b"nothing")
    return found

  monkeypatch.setattr(module.FilesSource, "open", vanish)
  monkeypatch.setattr(module, "_identify", cut_short)
  prepare(options)
  assert [c.file for c in manifest(options).clips] == ["0.mp4", "3.mp4"]
  said = capsys.readouterr().err
  assert "1.mp4 dropped: missing: no such file" in said
  assert "2.mp4 dropped: not a video" in said
  lines = module.Path(options.out, module.REPORT).read_text().splitlines()
  used = [json.loads(line)["used"] for line in lines]
  assert used == [True] * 4 + [False] * 2


def test_nothing_left_is_an_error(options, videos, monkeypatch):
  opened = module.FilesSource.open

  def vanish(*args, **kwargs):
    source = opened(*args, **kwargs)
    for name in NAMES:
      (videos / name).unlink()
    return source

  monkeypatch.setattr(module.FilesSource, "open", vanish)
  with pytest.raises(UserError, match="all videos broke"):
    prepare(options)


def test_a_full_disk_is_one_line_and_loses_nothing(options, encoded, videos):
  prepare(options)
  before = state(options)
  make(videos, "large.mp4", seconds=20)
  write_jsonl(videos, dict.fromkeys([*NAMES, "large.mp4"], "x"))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
  try:
    with pytest.raises(UserError, match=r"clips-00001.*cannot be written"):
      prepare(options)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert state(options) == before
  encoded.clear()
  prepare(options)
  assert encoded == ["large.mp4"]


def test_slow_videos_are_not_stored(options, capsys):
  make(module.Path(options.input), "slow.mp4", fps=5)
  captions = dict.fromkeys([*NAMES, "slow.mp4"], "x")
  write_jsonl(module.Path(options.input), captions)
  prepare(options)
  assert "dropped 1 slow" in capsys.readouterr().err
  assert {clip.file for clip in manifest(options).clips} == set(NAMES)
  report = module.Path(options.out, module.REPORT).read_text().splitlines()
  row = {r["file"]: r for r in map(json.loads, report)}["slow.mp4"]
  assert row["reason"].startswith("slow: 5 frames a second, clips have 8")
  prepare(change(options, min_fps_ratio=0.0))
  assert len(manifest(options).clips) == len(NAMES) + 1


def test_blended_clips_are_other_clips(options):
  """12 frames a second at 8: 1.5 frames a step, 15 levels."""
  folder = module.Path(options.input)
  for name in NAMES:
    (folder / name).unlink()
  make(folder, "x.mp4", fps=12, seconds=1.5)
  write_jsonl(folder, {"x.mp4": "x"})
  prepare(options)
  (nearest,) = manifest(options).clips
  prepare(change(options, resample="blend"))
  (blended,) = manifest(options).clips
  assert nearest.key != blended.key
  levels = {}
  for clip in (nearest, blended):
    blob = InMemoryFile("x", stored(options)[clip.key])
    pixels = read_clip(blob, start_s=0, num_frames=12, fps=8)
    levels[clip.key] = pixels.mean((1, 2, 3))
  line = 10 + 15 * np.arange(12)
  np.testing.assert_allclose(levels[blended.key], line, atol=3)
  assert np.abs(levels[nearest.key] - line).max() > 4


def test_one_at_a_time(options):
  with (
    locked(options.out),
    pytest.raises(UserError, match="out: another process is writing to it"),
  ):
    prepare(options)
  prepare(options)


def test_a_place_that_cannot_be_written(options, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file/out: cannot be written"):
    prepare(change(options, out=str(tmp_path / "file" / "out")))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"input": ""}, "--input is missing"),
    ({"out": ""}, "--out is missing"),
    ({"out": "gs://bucket/x"}, "--out=gs://bucket/x is remote"),
    ({"fps": 0.0}, "--fps=0.0 must be above 0"),
    ({"side": 1}, "--side=1 must be at least 2"),
    ({"num_frames": 0}, "--num_frames=0"),
    ({"max_seconds": -1.0}, "--max_seconds=-1.0"),
    ({"crf": 52}, "--crf=52"),
    ({"min_fps_ratio": -1.0}, "--min_fps_ratio=-1.0"),
    ({"resample": "mix"}, "--resample='mix' is not one of nearest, blend"),
  ],
)
def test_options_out_of_range(values, message):
  with pytest.raises(UserError, match=message):
    Options(**{"input": "x", "out": "y"} | values)
