"""Preparing with Beam equals `prepare`, locally or remote, after any kill."""

import pytest

pytest.importorskip("apache_beam", reason="needs the beam extra")


import functools
import json
import logging
from pathlib import Path
import shutil

from absl import flags
from absl.testing import flagsaver
import fsspec
import numpy as np

from launch import prepare_beam
from lumiere_jax.data import preprocess_beam
from lumiere_jax.data.manifest import CLIPS, read_manifest
from lumiere_jax.data.preprocess import Options, prepare
from lumiere_jax.data.preprocess_beam import ScaleOptions
from lumiere_jax.data.sources.base import ClipSpec
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.prepared import open_prepared
from lumiere_jax.data.text_features import (
  TextCache,
  TextShards,
  text_shard_prefix,
)
from lumiere_jax.errors import UserError
from lumiere_jax.models.text_encoder import open_text_encoder
from lumiere_jax.storage.array_record import Records, RecordWriter
from lumiere_jax.storage.remote import Folder
from tests.data.videos import make, read_report, write_jsonl

GOOD = {
  "a.mp4": ["video a", "the first"],
  "copy.mp4": ["video a"],
  "long.mp4": ["long"],
}
CAPTIONS = GOOD | {"broken.mp4": ["x"], "gone.mp4": ["x"], "short.mp4": ["s"]}
CAPTIONS["slow.mp4"] = ["slow"]


@functools.cache
def open_encoder():
  """Shared by all tests, so that it compiles once."""
  return open_text_encoder("", "", 8)


@pytest.fixture(scope="module", autouse=True)
def quiet():
  """Silences Beam, which logs the stack of the errors that are raised here."""
  logging.disable(logging.ERROR)
  yield
  logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  make(folder, "a.mp4")
  shutil.copy(folder / "a.mp4", folder / "copy.mp4")
  make(folder, "long.mp4", seconds=3)
  make(folder, "short.mp4", seconds=0.25)
  make(folder, "slow.mp4", fps=5)
  make(folder, "bare.mp4")
  (folder / "broken.mp4").write_text("no video" * 100)
  rows = [{"file": f, "captions": c} for f, c in CAPTIONS.items()]
  lines = "\n".join(map(json.dumps, rows))
  (folder / "captions.jsonl").write_text(lines)
  return folder


@pytest.fixture(scope="module")
def values(videos, tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  how = {"fps": 8.0, "side": 16, "num_frames": 4, "max_seconds": 2.0}
  return how | {"input": str(videos), "cache": str(cache)}


@pytest.fixture(scope="module")
def expected(values, tmp_path_factory):
  """The output of `prepare`."""
  out = tmp_path_factory.mktemp("expected")
  prepare(Options(**values, out=str(out)), open_encoder())
  return out


@pytest.fixture(scope="module")
def original(values, tmp_path_factory):
  """The output of the command with flags."""
  out = tmp_path_factory.mktemp("original")
  given = values | {"output": out, "max_length": 8}
  given = {name: str(value) for name, value in given.items()}
  with flagsaver.as_parsed(**given):
    flags.FLAGS.mark_as_parsed()
    prepare_beam.main([], ["--runner=DirectRunner"])
  flags.FLAGS.unparse_flags()
  return out


def run(values, out):
  options = ScaleOptions(**values, out=str(out))
  preprocess_beam.prepare_at_scale(
    options, open_encoder, ["--runner=FnApiRunner"]
  )


def contents(folder):
  """Records by shard name, and the bytes of the other files."""
  folder = Folder(folder)
  identity = read_manifest(folder).text
  whole = {
    name: folder.local(name).read_bytes()
    for name in ("prepared.json", "data_report.jsonl")
  }
  for name in (CLIPS, text_shard_prefix(identity)):
    whole[name] = dict(Records(folder, name))
  return whole


def files(folder):
  """Modification time by file name."""
  return {
    path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
    for path in sorted(Path(folder).rglob("*"))
    if path.is_file()
  }


def test_the_output_equals_that_of_prepare(expected, original):
  ours = contents(original)
  assert ours == contents(expected)
  assert len(ours[CLIPS]) == 3  # copy.mp4 holds what a.mp4 does; long.mp4, two
  clips = read_manifest(Folder(original)).clips
  assert [clip.file for clip in clips] == [*GOOD, "long.mp4"]
  rows = read_report(original / "data_report.jsonl")
  kinds = {row["file"]: (row["reason"] or "").split(":")[0] for row in rows}
  assert kinds == dict.fromkeys(GOOD, "") | {
    "bare.mp4": "no caption",
    "broken.mp4": "not a video, or cut short",
    "gone.mp4": "missing",
    "short.mp4": "too short",
    "slow.mp4": "slow",
  }


def test_training_reads_it_and_encodes_no_caption(original, videos, tmp_path):
  spec = ClipSpec(num_frames=4, fps=8, resolution=(16, 16))
  stored, source = open_prepared(original, [spec]), FilesSource
  theirs = source.open(videos, [spec])
  assert len(stored) == 4
  ours = stored.clip(0).astype(int)
  assert np.abs(ours - theirs.clip(0)).mean() < 4
  encoder = open_encoder()
  shards, refuse = TextShards(Folder(original)), lambda: pytest.fail("encoded")
  cache = TextCache(refuse, tmp_path, encoder.identity, shards=[shards])
  captions = sorted({c for some in GOOD.values() for c in some})
  for ours, theirs in zip(
    cache(captions), encoder.encode(captions), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_a_second_run_writes_nothing(original, values, capsys):
  before = files(original)
  run(values, original)
  assert files(original) == before
  err = capsys.readouterr().err
  assert "3 of 8 files" in err
  assert f"4 clips in {original}, 0 of them new" in err


def test_only_new_videos_are_added(original, values, videos, tmp_path, capsys):
  """Existing clips and captions stay in their shards."""
  folder, out = tmp_path / "videos", tmp_path / "out"
  shutil.copytree(videos, folder)
  shutil.copytree(original, out)
  make(folder, "new.mp4", seconds=1)
  write_jsonl(folder, {"a.mp4": "video a", "new.mp4": "new"})
  before = files(out)
  run(values | {"input": str(folder)}, out)
  added = set(files(out)) - set(before)
  assert sorted(name.split("-")[0].split("/")[0] for name in added) == (
    ["clips", "text"]
  )
  clips = read_manifest(Folder(out)).clips
  assert [clip.file for clip in clips] == ["a.mp4", "new.mp4"]
  err = capsys.readouterr().err
  assert "2 clips in" in err
  assert "1 of them new" in err
  assert "2 clips of earlier runs" in err


class Killed(Exception):
  pass


def test_a_killed_run_is_resumed(
  expected, values, tmp_path, monkeypatch, capsys
):
  """Killed after the first shard, with one clip per shard."""
  small = functools.partial(RecordWriter, shard_bytes=1)
  with monkeypatch.context() as patch:
    patch.setattr(preprocess_beam, "RecordWriter", small)
    kept = RecordWriter.__setitem__

    def keep(writer, key, value):
      if list(tmp_path.glob("clips-*")):
        raise Killed("the machine is gone")
      kept(writer, key, value)

    patch.setattr(RecordWriter, "__setitem__", keep)
    with pytest.raises(Killed):
      run(values, tmp_path)
  there = Records(Folder(tmp_path), CLIPS)
  assert len(there) == 1
  with pytest.raises(
    UserError, match=r"unfinished: clips but no prepared.json"
  ):
    open_prepared(tmp_path, [])
  before = files(tmp_path)
  capsys.readouterr()
  run(values, tmp_path)
  assert "4 clips in" in (err := capsys.readouterr().err)
  assert "2 of them new" in err
  assert contents(tmp_path) == contents(expected)
  assert before.items() <= files(tmp_path).items()
  assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_buckets(values, videos, tmp_path):
  """Remote input and output; no local copy stays."""
  system = fsspec.filesystem("memory")
  system.store.clear()
  system.put(str(videos), "/in", recursive=True)
  remote = values | {"input": "memory://in"}
  prepare(Options(**remote, out=str(tmp_path)), open_encoder())
  run(remote | {"cache": ""}, "memory://out/made/")
  assert contents("memory://out/made") == contents(tmp_path)
  before = {name: system.modified(name) for name in system.find("/out")}
  assert not [name for name in before if "/." in name]
  run(remote | {"cache": ""}, "memory://out/made/")
  assert before == {name: system.modified(name) for name in system.find("/out")}


def test_a_video_that_fails_to_encode_is_reported(
  values, tmp_path, monkeypatch, capsys
):
  encode = preprocess_beam.encode_segment

  def broken(part, *args):
    if part.stored.file == "long.mp4":
      return preprocess_beam.VideoError("x", "damaged: a bit")
    return encode(part, *args)

  monkeypatch.setattr(preprocess_beam, "encode_segment", broken)
  run(values, tmp_path)
  clips = read_manifest(Folder(tmp_path)).clips
  assert [clip.file for clip in clips] == ["a.mp4", "copy.mp4"]
  late = read_report(tmp_path / "data_report.jsonl")[8:]
  assert [(row["file"], row["reason"]) for row in late] == (
    [("long.mp4", "damaged: a bit")] * 2
  )
  err = capsys.readouterr().err
  assert "3 of 8 files" in err
  assert "long.mp4 dropped: damaged: a bit" in err


def test_no_usable_video_is_one_line(values, videos, tmp_path):
  folder, out = tmp_path / "videos", tmp_path / "out"
  folder.mkdir()
  shutil.copy(videos / "broken.mp4", folder)
  write_jsonl(folder, {"broken.mp4": "x", "gone.mp4": "x"})
  with pytest.raises(UserError, match="none of 2 files can be used") as caught:
    run(values | {"input": str(folder)}, out)
  assert "while running" not in str(caught.value)
  assert len(read_report(out / "data_report.jsonl")) == 2
  assert not (out / "prepared.json").exists()


def test_unwritable_outputs(values, tmp_path):
  (tmp_path / "file").touch()
  for out, words in {
    tmp_path / "file/out": "cannot be written",
    "nowhere://bucket/x": "nowhere://bucket/x: .*Protocol not known",
  }.items():
    with pytest.raises(UserError, match=words):
      run(values, out)


def test_flags_are_split():
  argv = ["x", "--input=a", "--side", "3", "--runner=SparkRunner", "--y", "z"]
  ours, beams = prepare_beam.split_flags(argv)
  assert ours == ["x", "--input=a", "--side", "3"]
  assert beams == ["--runner=SparkRunner", "--y", "z"]
  assert prepare_beam.with_local_runner(beams) == beams
  local = prepare_beam.with_local_runner(["--direct_num_workers=2"])
  assert local == ["--direct_num_workers=2", "--runner=FnApiRunner"]
  with pytest.raises(UserError, match=r"sied=3 .*did you mean .side"):
    prepare_beam.with_local_runner(["--runner=DirectRunner", "--sied=3"])
