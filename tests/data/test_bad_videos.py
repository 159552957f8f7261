"""Unusual and damaged videos, and videos that become unreadable in use."""

import functools
import itertools
import struct

import av
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.data.loader import Loader, batches
from lumiere_jax.data.sources.base import UnreadableClip
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.models.tokenizer import Tokenizer, default_tokenizer_path
from tests.data.videos import (
  frame_numbers,
  make,
  open_files,
  open_videos,
  picture,
  read_report,
  spec,
  write_jsonl,
)
from tests.media.encoding import with_audio


def test_files_that_become_unreadable(folder, capsys):
  source, _ = open_files(folder)
  (folder / "1.mp4").unlink()
  (folder / "2.mp4").write_bytes((folder / "2.mp4").read_bytes()[:900])
  capsys.readouterr()
  for _ in range(3):
    for k in (1, 2):
      with pytest.raises(UnreadableClip, match=f"{k}.mp4"):
        source.clip(k, np.random.default_rng(0))
    assert source.clip(0).shape == (4, 16, 16, 3)
  make(folder, "1.mp4")  # A dropped file stays dropped.
  with pytest.raises(UnreadableClip):
    source.clip(1)
  printed = capsys.readouterr().err.splitlines()
  assert len(printed) == 2  # Once for each.
  assert "1.mp4 dropped: missing" in printed[0]
  late = read_report(folder / "data_report.jsonl")[4:]
  assert [(r["file"], r["used"]) for r in late] == [
    ("1.mp4", False),
    ("2.mp4", False),
  ]


def test_training_continues_without_missing_files(folder, capsys):
  source, _ = open_files(folder)
  made = batches(Loader(source=source, seed=0), batch_size=4, num_threads=1)
  next(made)
  capsys.readouterr()
  for k in (0, 3):
    (folder / f"{k}.mp4").unlink()
  later = list(itertools.islice(made, 24))[16:]  # Some are prefetched.
  assert {int(i) for batch in later for i in batch["index"]} == {1, 2}
  assert sorted(capsys.readouterr().err.splitlines()) == [
    f"data: {k}.mp4 dropped: missing: no such file" for k in (0, 3)
  ]
  late = read_report(folder / "data_report.jsonl")[4:]
  assert [row["file"] for row in late].count("0.mp4") == 1


@pytest.mark.parametrize("fill", [b"\0", b"\xa5"])
def test_damage_in_the_middle_of_a_file(tmp_path, fill, rng):
  """The file was whole when it was probed."""
  path = tmp_path / "x.mp4"
  write_video(path, rng.integers(0, 255, (40, 48, 64, 3), np.uint8), fps=8)
  write_jsonl(tmp_path, ["x.mp4"])
  source, _ = open_files(tmp_path)
  assert source.clip(0).shape == (4, 16, 16, 3)
  data = bytearray(path.read_bytes())
  middle = slice(len(data) // 3, 2 * len(data) // 3)
  data[middle] = fill * len(data[middle])
  path.write_bytes(data)
  with pytest.raises(UnreadableClip, match=r"x\.mp4: damaged"):
    source.clip(0)
  with pytest.raises(UnreadableClip, match="was dropped before"):
    source.clip(0, np.random.default_rng(0))


@pytest.mark.parametrize(
  "error",
  [
    ValueError("31 is not a valid Type"),
    OverflowError("int too big"),
    MemoryError(),
    struct.error("unpack requires 4 bytes"),
    IndexError("list index out of range"),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
  ],
)
def test_any_error_of_a_decoder_drops_one_file(folder, monkeypatch, error):
  picture(folder, "bad.png")
  write_jsonl(folder, ["bad.png", *(f"{k}.mp4" for k in range(4))])
  open_video, open_image, broken = av.open, Image.open, ("bad.png", "2.mp4")

  def fails(path, *args, opener, **options):
    if str(path).endswith(broken):
      raise error
    return opener(path, *args, **options)

  replace = lambda module, opener: monkeypatch.setattr(
    module, "open", functools.partial(fails, opener=opener)
  )
  replace(av, open_video)
  replace(Image, open_image)
  source, rows = open_files(folder)
  assert len(source) == 3
  for name in broken:
    reason = rows[name]["reason"]
    assert (str(error) or "MemoryError") in reason
    assert reason.startswith(("damaged: ", "not a video"))


def test_unusable_files_are_reported(tmp_path):
  folder = tmp_path / "odd"
  make(folder, "good.mp4")
  whole = (folder / "good.mp4").read_bytes()
  (folder / "zero.mp4").touch()
  for ending in ("mp4", "mkv", "avi"):
    (folder / f"head.{ending}").write_bytes(whole[:40])
  (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
  with_audio(folder / "sound.mp4", 1)
  make(folder, "one.mp4", seconds=0.125)
  dots = [Image.new("RGB", (1, 1), (k, k, k)) for k in range(10, 170, 10)]
  dots[0].save(
    folder / "dot.gif", save_all=True, append_images=dots[1:], duration=120
  )
  (folder / "loop.mp4").symlink_to("loop.mp4")
  (folder / "inner").mkdir()
  (folder / "inner" / "up").symlink_to(folder)
  (folder / "directory.mp4").mkdir()
  kinds = {
    "zero.mp4": "empty file",
    **{f"head.{e}": "no video stream" for e in ("mp4", "mkv", "avi")},
    "cut.mp4": "damaged",
    "sound.mp4": "no video stream",
    "one.mp4": "too short",
    "dot.gif": "too small",
    "loop.mp4": "missing",
    "directory.mp4": "not a file",
    "inner/up/gone.mp4": "missing",
  }
  write_jsonl(folder, ["good.mp4", *kinds])
  _, rows = open_files(folder)
  assert {name: row["reason"] for name, row in rows.items() if row["used"]} == {
    "good.mp4": None
  }
  dropped = [row for row in rows.values() if not row["used"]]
  assert {r["file"]: r["reason"].partition(":")[0] for r in dropped} == kinds


def test_240_fps(tmp_path):
  source, _ = open_videos(
    *(tmp_path, {"fast.mp4": {"seconds": 0.1, "fps": 240}}, spec(4, fps=40)),
    scene_cuts=15.0,
    min_motion=1.0,
  )
  assert source.videos[0].info.fps == pytest.approx(240)
  assert frame_numbers(source.clip(0)) == [0, 6, 12, 18]


def test_8k(tmp_path):
  with av.open(str(tmp_path / "8k.mp4"), "w") as out:
    stream = out.add_stream("mpeg4", 8)
    stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
    for level in (60, 140):
      frame = av.VideoFrame(7680, 4320, "yuv420p")
      for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  write_jsonl(tmp_path, ["8k.mp4"])
  source, _ = open_files(tmp_path, spec(2, 16, 24), min_motion=1.0)
  info = source.videos[0].info
  assert (info.height, info.width) == (4320, 7680)
  # The limited range of BT.709: 16 is black and 235 white.
  levels = [255 * (level - 16) / 219 for level in (60, 140)]
  clip = source.clip(0)
  assert clip.shape == (2, 16, 24, 3)
  assert clip.mean((1, 2, 3)) == pytest.approx(levels, abs=3)


def test_names_that_are_not_unicode(tmp_path):
  make(tmp_path, "x.mp4")
  name = b"\xe9.mp4".decode(errors="surrogateescape")
  (tmp_path / "x.mp4").rename(tmp_path / name)
  (tmp_path / name).with_suffix(".txt").write_text("x")
  source, rows = open_files(tmp_path)
  assert list(rows) == [name]
  (tmp_path / name).unlink()
  with pytest.raises(UnreadableClip):
    source.clip(0)
  assert read_report(tmp_path / "data_report.jsonl")[1]["file"] == name


def test_a_video_of_one_frame(tmp_path):
  make(tmp_path, "one.mp4", seconds=0.125)
  write_jsonl(tmp_path, ["one.mp4"])
  source, _ = open_files(tmp_path, spec(1))
  assert frame_numbers(source.clip(0, np.random.default_rng(0))) == [0]


def test_very_long_captions_train(tmp_path):
  long = ("a dog runs " * 9091).strip()
  assert len(long) > 99_999
  make(tmp_path, "x.mp4")
  write_jsonl(tmp_path, {"x.mp4": long})
  source, _ = open_files(tmp_path)
  loader = Loader(source=source, seed=0)
  batch = next(batches(loader, batch_size=1, num_threads=1))
  assert batch["caption"] == [long]
  tokenizer = Tokenizer(default_tokenizer_path(), max_length=8)
  with pytest.warns(UserWarning, match="only 8 tokens of a text are read"):
    tokens, mask = tokenizer.encode(batch["caption"])
  assert mask.all()
  assert tokens.shape == (1, 8)
