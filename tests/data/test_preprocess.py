"""Preparing: what is stored, what is done again, and errors."""

import dataclasses
import functools
import itertools
from pathlib import Path
import resource

import numpy as np
import pytest

from lumiere_jax.data import preprocess as module
from lumiere_jax.data.manifest import CLIPS, read_manifest
from lumiere_jax.data.preprocess import REPORT, Options, check_out, prepare
from lumiere_jax.errors import UserError
from lumiere_jax.media.images import read_image, write_image
from lumiere_jax.media.input_file import InMemoryFile
from lumiere_jax.media.video_reader import probe, read_clip
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.atomic import locked
from lumiere_jax.storage.remote import Folder
from tests.data.fakes import FakeEncoder
from tests.data.videos import frame_numbers, make, read_report, write_jsonl

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
  """The source files of the segments that have been encoded."""
  files, encode = [], module.encode_segment

  def spy(segment, *args):
    files.append(segment.stored.file)
    return encode(segment, *args)

  monkeypatch.setattr(module, "encode_segment", spy)
  return files


change = dataclasses.replace


@pytest.mark.parametrize(
  ("name", "content", "is_ours"),
  [
    ("data_report.jsonl", "mine", False),
    ("prepared.json", '{"mine": 1}', False),
    ("prepared.json", '{\n "version": 1,\n "opt', True),  # cut short
    ("data_report.jsonl", "", True),
    ("notes.txt", "mine", True),
  ],
)
def test_files_of_others_are_not_replaced(options, name, content, is_ours):
  path = Path(options.out, name)
  path.parent.mkdir()
  path.write_text(content)
  if is_ours:
    check_out(path.parent)
  else:
    with pytest.raises(UserError, match=f"{name}: is there already"):
      prepare(options)
  assert path.read_text() == content


@pytest.mark.parametrize("out", ["/proc/x", __file__, f"{__file__}/x"])
def test_folders_that_cannot_be_written(options, out):
  with pytest.raises(UserError, match="cannot be written"):
    prepare(change(options, out=out))


def clips(options):
  return read_manifest(Folder(options.out)).clips


def files(options):
  return [clip.file for clip in clips(options)]


def stored(options):
  return dict(Records(Folder(options.out), CLIPS))


def pixels(options, clip):
  blob = InMemoryFile("x", stored(options)[clip.key])
  return read_clip(blob, start_s=0, num_frames=clip.frames, fps=options.fps)


def state(options):
  """All files but the report, which differs from run to run."""
  return {
    path: (path.stat().st_mtime_ns, path.read_bytes())
    for path in sorted(Path(options.out).rglob("*"))
    if path.is_file() and path.name != REPORT
  }


def prepared_json(options):
  return Path(options.out, "prepared.json").read_bytes()


def test_videos_are_downscaled(options, capsys):
  prepare(options)
  manifest = read_manifest(Folder(options.out))
  assert files(options) == NAMES
  assert (manifest.options["fps"], manifest.text) == (8, "")
  for k, clip in enumerate(manifest.clips):
    assert clip.captions == (f"video {k}.mp4",)
    assert (clip.frames, clip.height, clip.width) == (16 + k, 16, 20)
    info = probe(InMemoryFile("x", stored(options)[clip.key]))
    assert (info.num_frames, info.height, info.width) == (16 + k, 16, 20)
    assert info.fps == pytest.approx(8)
    assert frame_numbers(pixels(options, clip)) == list(range(16 + k))
  assert len(read_report(Path(options.out, REPORT))) == 4
  printed = capsys.readouterr().err
  for words in ("4 clips in", "4 of them new", "70/70"):  # 70 frames.
    assert words in printed


def test_nothing_is_enlarged_and_time_is_resampled(options):
  options = change(options, side=999, fps=4)
  prepare(options)
  clip = clips(options)[0]
  assert (clip.frames, clip.height, clip.width) == (8, 24, 32)
  assert frame_numbers(pixels(options, clip)) == list(range(0, 16, 2))


def test_a_second_run_does_nothing(options, encoded, capsys, tmp_path):
  prepare(options)
  encoded.clear()
  before = state(options)
  capsys.readouterr()
  prepare(options)
  assert state(options) == before
  assert encoded == []
  printed = capsys.readouterr().err
  assert "4 clips in" in printed
  assert "0 of them new" in printed
  assert "preparing" not in printed
  # Elsewhere it gives the same bytes.
  again = change(options, out=str(tmp_path / "again"), threads=1)
  prepare(again)
  assert prepared_json(again) == prepared_json(options)
  assert stored(again) == stored(options)


class Killed(BaseException):
  pass


@pytest.mark.parametrize("moment", range(5))
def test_a_killed_run_continues(options, encoded, monkeypatch, moment):
  """Killed at each clip, and before prepared.json, with shards of one clip."""
  whole = change(options, out=options.out + "-whole")
  prepare(whole)
  writer = functools.partial(RecordWriter, shard_bytes=1)
  monkeypatch.setattr(module, "RecordWriter", writer)
  with monkeypatch.context() as patch:
    patch.setattr(RecordWriter, "__exit__", lambda self, *error: None)
    write, count = RecordWriter.__setitem__, itertools.count()

    def write_or_die(*args):
      if len(args) == 2 or next(count) == moment:  # the manifest, or a record
        raise Killed
      write(*args)

    patch.setattr(RecordWriter, "__setitem__", write_or_die)
    patch.setattr(module.Manifest, "write", write_or_die)
    with pytest.raises(Killed):
      prepare(options)
  message = "unfinished: .* again" if moment else "not a prepared folder"
  with pytest.raises(UserError, match=message):
    clips(options)
  assert len(stored(options)) == moment
  encoded.clear()
  prepare(options)
  assert len(encoded) == 4 - moment
  assert prepared_json(options) == prepared_json(whole)


def test_only_a_changed_file_is_encoded_again(options, videos, encoded, capsys):
  prepare(options)
  before = clips(options)
  make(videos, "1.mp4", seconds=3)
  encoded.clear()
  prepare(options)
  assert encoded == ["1.mp4"]
  after = clips(options)
  same = [old == new for old, new in zip(before, after, strict=True)]
  assert same == [True, False, True, True]
  assert after[1].frames == 24
  assert "1 clips of earlier runs" in capsys.readouterr().err


def test_other_options_give_other_clips(options, encoded):
  prepare(options)
  for changed in ({"crf": 30}, {"side": 8}, {"fps": 4}):
    encoded.clear()
    prepare(change(options, **changed))
    assert sorted(encoded) == NAMES
  sizes = lambda: [len(stored(options)[c.key]) for c in clips(options)]
  small = sizes()
  prepare(options)
  assert small < sizes()
  encoded.clear()
  prepare(change(options, threads=3, num_frames=2))
  assert encoded == []


def test_copies_are_stored_once(options, videos, encoded):
  (videos / "copy.mp4").write_bytes((videos / "0.mp4").read_bytes())
  write_jsonl(videos, {"0.mp4": "a", "copy.mp4": "b"})
  prepare(options)
  first, second = clips(options)
  assert (first.captions, second.captions) == (("a",), ("b",))
  assert first.key == second.key
  assert encoded in (["0.mp4"], ["copy.mp4"])


def test_only_new_captions_are_encoded(options, videos, encoded):
  encoder = FakeEncoder()
  prepare(options, encoder)
  assert read_manifest(Folder(options.out)).text == encoder.identity
  name = f"text/{encoder.identity}/text"
  features = lambda: len(Records(Folder(options.out), name))
  assert features() == 4
  encoded.clear()
  captions = {name: f"video {name}" for name in NAMES} | {"2.mp4": "a dog"}
  write_jsonl(videos, captions)
  prepare(options, encoder)
  assert encoded == []
  assert clips(options)[2].captions == ("a dog",)
  assert features() == 5
  shards = Path(options.out, "text", encoder.identity)
  assert len(list(shards.iterdir())) == 2


def test_long_videos_are_split_evenly(options, videos):
  make(videos, "long.mp4", seconds=2.5)  # 20 frames.
  write_jsonl(videos, ["long.mp4"])
  prepare(change(options, max_seconds=1))
  found = clips(options)
  assert [clip.start_s for clip in found] == pytest.approx([0, 2.5 / 3, 5 / 3])
  assert {clip.seconds for clip in found} == {2.5 / 3}
  numbers = [frame_numbers(pixels(options, clip)) for clip in found]
  assert [part[0] for part in numbers] == [0, 6, 13]
  assert all(np.diff(part).tolist() == [1] * 6 for part in numbers)
  for changed, count in (
    ({"max_seconds": 1, "num_frames": 10}, 2),
    ({"max_seconds": 0}, 1),
  ):
    prepare(change(options, **changed))
    assert len(clips(options)) == count


def test_pictures_are_lossless(options, videos, rng):
  picture = rng.integers(0, 256, (12, 40, 3), np.uint8)
  write_image(videos / "x.png", picture)
  write_jsonl(videos, ["x.png", "0.mp4"])
  prepare(options)
  clip = clips(options)[1]
  assert (clip.seconds, clip.frames) == (0, 1)
  blob = InMemoryFile("x", stored(options)[clip.key])
  assert np.array_equal(read_image(blob), picture)
  prepare(change(options, num_frames=2))
  assert files(options) == ["0.mp4"]


@pytest.fixture
def after_probing(monkeypatch):
  """Calls a function once the source is open."""

  def after_probing(function):
    opened = module.FilesSource.open

    def spy(*args, **kwargs):
      source = opened(*args, **kwargs)
      function()
      return source

    monkeypatch.setattr(module.FilesSource, "open", spy)

  return after_probing


def test_files_that_vanish_are_reported(
  options, videos, after_probing, monkeypatch, capsys
):
  """One after it was probed, one after it was hashed."""
  split_video = module.split_video

  def damage(video, *args):
    if video.file == "2.mp4":
      (videos / "2.mp4").write_bytes(b"nothing")
    return split_video(video, *args)

  after_probing((videos / "1.mp4").unlink)
  monkeypatch.setattr(module, "split_video", damage)
  prepare(options)
  assert files(options) == ["0.mp4", "3.mp4"]
  printed = capsys.readouterr().err
  assert "1.mp4 dropped: missing: no such file" in printed
  assert "2.mp4 dropped: not a video" in printed
  rows = read_report(Path(options.out, REPORT))
  assert [row["used"] for row in rows] == [True] * 4 + [False] * 2


def test_no_clip_at_all_is_an_error(options, videos, after_probing):
  after_probing(lambda: [(videos / name).unlink() for name in NAMES])
  with pytest.raises(UserError, match="all videos were dropped; see"):
    prepare(options)


def test_a_full_disk_is_one_line_and_loses_nothing(options, encoded, videos):
  prepare(options)
  before = state(options)
  make(videos, "large.mp4", seconds=20)
  write_jsonl(videos, [*NAMES, "large.mp4"])
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


def test_slow_videos_are_not_stored(options, videos, capsys):
  make(videos, "slow.mp4", fps=5)
  write_jsonl(videos, [*NAMES, "slow.mp4"])
  prepare(options)
  assert "dropped 1 slow" in capsys.readouterr().err
  assert files(options) == NAMES
  row = read_report(Path(options.out, REPORT))[-1]
  assert row["reason"].startswith("slow: 5 frames per second")
  prepare(change(options, min_fps_ratio=0.0))
  assert files(options) == [*NAMES, "slow.mp4"]


def test_blended_clips_are_other_clips(options, videos):
  """12 fps at 8 fps: 1.5 frames, or 15 grey levels, a step."""
  make(videos, "x.mp4", fps=12, seconds=1.5)
  write_jsonl(videos, ["x.mp4"])
  for name in NAMES:
    (videos / name).unlink()
  line = 10 + 15 * np.arange(12)
  found = {}
  for resample in ("nearest", "blend"):
    prepare(change(options, resample=resample))
    (clip,) = clips(options)
    levels = pixels(options, clip).mean((1, 2, 3))
    found[resample] = clip.key, np.abs(levels - line).max()
  assert found["nearest"][0] != found["blend"][0]
  assert found["blend"][1] < 3.5
  assert found["nearest"][1] > 4


def test_unwritable_folders(options, tmp_path):
  message = "out: another process is writing to it"
  with locked(options.out), pytest.raises(UserError, match=message):
    prepare(options)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file/out: cannot be written"):
    prepare(change(options, out=str(tmp_path / "file" / "out")))


@pytest.mark.parametrize(
  ("name", "value", "problem"),
  [
    ("input", "", "is missing"),
    ("out", "", "is missing"),
    ("out", "gs://bucket/x", "is remote"),
    ("fps", 0.0, "must be above 0"),
    ("side", 1, "must be at least 2"),
    ("num_frames", 0, "must be at least 1"),
    ("max_seconds", -1.0, "must be at least 0"),
    ("crf", 52, "must be from 1 to 51"),
    ("min_fps_ratio", -1.0, "must be at least 0"),
    ("resample", "mix", "is not one of nearest, blend"),
  ],
)
def test_options_out_of_range(name, value, problem):
  with pytest.raises(UserError) as error:
    Options(**{"input": "x", "out": "y"} | {name: value})
  assert error.value.format("--{}".format).startswith(f"--{name}")
  assert problem in str(error.value)
