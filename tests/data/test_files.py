import json
from pathlib import Path

import numpy as np
import pytest

from lumiere_jax.data.captions import read_captions
from lumiere_jax.data.files import FilesSource
from lumiere_jax.data.report import Report
from lumiere_jax.data.source import ClipSpec, UnreadableClip
from lumiere_jax.data.video import Video
from lumiere_jax.io.decode import VideoInfo
from lumiere_jax.io.folder import Folder
from lumiere_jax.io.write import write_video
from lumiere_jax.typing import UserError

CLIPS = Path(__file__).parents[2] / "../shared/assets/clips"
SPEC = ClipSpec(num_frames=4, fps=8, resolution=(16, 16))


def make(folder, name, seconds=2.0, fps=8):
  """A video whose frame k has the grey level 10 + 10 k."""
  count = round(seconds * fps)
  levels = (10 + 10 * np.arange(count)).astype(np.uint8)
  video = np.broadcast_to(levels[:, None, None, None], (count, 24, 32, 3))
  write_video(folder / name, video, fps)


def write_jsonl(folder, rows):
  lines = [json.dumps({"file": f, "caption": c}) for f, c in rows.items()]
  (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def frame_numbers(clip):
  return ((clip.astype(float).mean((1, 2, 3)) - 10) / 10).round().tolist()


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "videos"
  for k in range(4):
    make(folder, f"{k}.mp4")
  write_jsonl(folder, {f"{k}.mp4": f"video {k}" for k in range(4)})
  return folder


def test_captions_in_three_ways(tmp_path):
  expected = {"a/x.mp4": ('x, "quoted"',), "b.anything": ("vidéo b",)}
  ways = [tmp_path / name for name in ("jsonl", "csv", "txt")]
  for way in ways:
    (way / "a").mkdir(parents=True)
    (way / "a" / "x.mp4").touch()
    (way / "b.anything").touch()
    (way / ".hidden.mp4").touch()
  write_jsonl(ways[0], {"b.anything": "vidéo b", "./a/x.mp4": 'x, "quoted" '})
  (ways[1] / "captions.csv").write_text(
    '\ufeffid,file,caption\n1,b.anything,vidéo b\n2,a/x.mp4,"x, ""quoted"""\n',
    encoding="utf-8",
  )
  (ways[2] / "a" / "x.txt").write_text('x,\n  "quoted"\n')
  (ways[2] / "b.txt").write_text("vidéo b", encoding="utf-8")
  (ways[2] / ".hidden.txt").write_text("hidden")
  (ways[2] / "readme.txt").write_text("beside no video")
  for way in ways:
    assert read_captions(Folder(way)) == expected
    assert list(read_captions(Folder(way))) == sorted(expected)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("captions.jsonl", b'{"file": "a", "caption": ""}\n{"file"', "line 2: not"),
    (
      "captions.jsonl",
      b'\n{"file": "a", "text": ""}',
      "line 2: no 'caption'; it has 'file', 'text'",
    ),
    (
      "captions.jsonl",
      b'{"file": "a", "caption": 3}',
      "a caption is 3; write a string",
    ),
    (
      "captions.jsonl",
      b'{"file": " ", "caption": ""}',
      "'file' is ' '; name a video",
    ),
    ("captions.jsonl", b'["a", "b"]', "line 1: a list; write an object"),
    ("captions.jsonl", b'{}\n\n{"file": "\xff"}', "line 3: not UTF-8.*0xff"),
    ("captions.jsonl", b"\n", "no captions"),
    (
      "captions.jsonl",
      b'{"file": "a", "caption": "1"}\n{"file": "./a", "caption": "2"}',
      "line 2: a is captioned on line 1 already",
    ),
    (
      "captions.csv",
      b"name,caption\na,b\n",
      "line 1: no column 'file'; the columns are 'name', 'caption'",
    ),
    ("captions.csv", b"file,caption\na,b\nc\n", "line 3: not 2 columns; quote"),
    ("captions.csv", b'file,caption\n"a,b\n', "line 2: not CSV"),
    ("x.txt", b"fine\nnot \xe9", "x.txt, line 2: not UTF-8"),
  ],
)
def test_caption_errors_name_the_line(tmp_path, name, text, message):
  (tmp_path / "x.mp4").touch()
  (tmp_path / name).write_bytes(text)
  with pytest.raises(UserError, match=message):
    read_captions(Folder(tmp_path))


def test_no_captions_or_two_kinds(tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    read_captions(Folder(tmp_path / "gone"))
  with pytest.raises(UserError, match=r"no captions; write captions\.jsonl"):
    read_captions(Folder(tmp_path))
  for name in ("captions.jsonl", "captions.csv"):
    (tmp_path / name).touch()
  with pytest.raises(UserError, match=r"captions\.jsonl and captions\.csv"):
    read_captions(Folder(tmp_path))


def test_report_says_what_became_of_every_video(folder, tmp_path, capsys):
  make(folder, "short.mp4", seconds=0.25)
  make(folder, "bare.mp4")
  make(folder, "wordless.gif")
  (folder / "empty.mp4").touch()
  (folder / "text.mp4").write_text("no video" * 100)
  kinds = {
    "short.mp4": "too short",
    "empty.mp4": "empty file",
    "text.mp4": "not a video, or cut short",
    "gone.mp4": "missing",
    "wordless.gif": "empty caption",
  }
  good = {f"{k}.mp4": f"video {k}" for k in range(4)}
  write_jsonl(folder, good | dict.fromkeys(kinds, "x") | {"wordless.gif": " "})
  kinds["bare.mp4"] = "no caption"

  report_path = tmp_path / "out" / "data_report.jsonl"
  source = FilesSource.open(folder, [SPEC], report_path=report_path)
  rows = [json.loads(line) for line in report_path.read_text().splitlines()]
  assert [row["file"] for row in rows] == sorted(good | kinds)
  for row in rows:
    assert row["used"] == (row["file"] in good)
    if row["used"]:
      assert row["reason"] is None
      assert (row["seconds"], row["fps"], row["frames_at_fps"]) == (2, 8, 16)
      assert (row["width"], row["height"]) == (32, 24)
    else:
      assert row["reason"].partition(":")[0] == kinds[row["file"]]
  short = next(row for row in rows if row["file"] == "short.mp4")
  assert (
    "0.25 s make 2 frames at 8 fps, a clip is 4 (0.50 s)" in short["reason"]
  )

  said = capsys.readouterr()
  assert not said.out
  assert "4 of 10 videos" in said.err
  assert "1 too short" in said.err
  assert "1 no caption" in said.err
  assert str(report_path) in said.err
  assert len(source) == 4
  assert [source.captions(k) for k in range(4)] == [(c,) for c in good.values()]


def test_nothing_left_counts_the_reasons(tmp_path):
  for k in range(3):
    (tmp_path / f"{k}.mp4").touch()
  write_jsonl(tmp_path, {f"{k}.mp4": "x" for k in range(5)})
  message = "none of 5 videos can be used: 3 empty file, 2 missing"
  with pytest.raises(UserError, match=message):
    FilesSource.open(tmp_path, [SPEC], report_path=tmp_path / "report.jsonl")
  assert len((tmp_path / "report.jsonl").read_text().splitlines()) == 5


def test_clips_start_anywhere(folder):
  source = FilesSource.open(folder, [SPEC])
  first = set()
  for seed in range(60):
    clip = source.clip(0, np.random.default_rng(seed))
    assert clip.shape == (4, 16, 16, 3)
    assert clip.dtype == np.uint8
    numbers = frame_numbers(clip)
    assert np.diff(numbers).tolist() == [1, 1, 1]
    first.add(numbers[0])
  # 16 frames: a clip of 4 begins on any of 0 to 12; 12 only at the very end.
  assert first >= set(range(12))
  assert max(first) <= 12
  again = source.clip(0, np.random.default_rng(59))
  assert np.array_equal(clip, again)


def test_without_rng_the_middle(folder):
  source = FilesSource.open(folder, [SPEC])
  assert frame_numbers(source.clip(2)) == [6, 7, 8, 9]


def test_just_long_enough(tmp_path):
  make(tmp_path, "x.mp4", seconds=0.5)
  write_jsonl(tmp_path, {"x.mp4": "x"})
  source = FilesSource.open(tmp_path, [SPEC])
  for rng in (None, np.random.default_rng(0)):
    assert frame_numbers(source.clip(0, rng)) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [2, 3, 12])
def test_split_parts_the_videos(folder, count):
  write_jsonl(folder, {f"{k}.mp4": "x" for k in range(count)})
  for k in range(4, count):
    make(folder, f"{k}.mp4", seconds=0.5)
  files = lambda source: [video.file for video in source.videos]
  source = FilesSource.open(folder, [SPEC])
  for fraction in (0.01, 0.3, 0.99):
    train, held_out = source.split(fraction)
    assert files(train)
    assert files(held_out)
    assert sorted(files(train) + files(held_out)) == sorted(files(source))
    again = FilesSource.open(folder, [SPEC]).split(fraction)
    assert files(again[1]) == files(held_out)
  assert files(source.split(0)[0]) == files(source)
  for fraction in (-0.1, 1.0):
    with pytest.raises(UserError, match="held-out fraction"):
      source.split(fraction)


def test_split_moves_no_other_video():
  """A video's part does not depend on which others there are."""
  info = VideoInfo(duration_s=9.0, num_frames=9, height=9, width=9)
  videos = [
    Video(file=f"{k}.mp4", captions=("x",), info=info, spec=SPEC)
    for k in range(2000)
  ]
  part = lambda some: {
    video.file
    for video in FilesSource(Folder(""), [SPEC], some, Report())
    .split(0.1)[1]
    .videos
  }
  everything, half = part(videos), part(videos[::2])
  assert half == everything & {video.file for video in videos[::2]}
  assert 150 < len(everything) < 250


def test_one_video_is_not_held_out(folder):
  source = FilesSource.open(folder, [SPEC])
  for video in source.videos:
    one = FilesSource(Folder(folder), [SPEC], [video], Report())
    train, held_out = one.split(0.99)
    assert (len(train), len(held_out)) == (1, 0)


def test_a_video_that_breaks_later(folder, tmp_path, capsys):
  report_path = tmp_path / "data_report.jsonl"
  source = FilesSource.open(folder, [SPEC], report_path=report_path)
  (folder / "1.mp4").unlink()
  (folder / "2.mp4").write_bytes((folder / "2.mp4").read_bytes()[:900])
  capsys.readouterr()
  for _ in range(3):
    for k in (1, 2):
      with pytest.raises(UnreadableClip, match=f"{k}.mp4"):
        source.clip(k, np.random.default_rng(0))
    assert source.clip(0).shape == (4, 16, 16, 3)
  make(folder, "1.mp4")  # what is dropped stays dropped
  with pytest.raises(UnreadableClip):
    source.clip(1)
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2  # once for each
  assert "1.mp4 dropped: missing" in said[0]
  rows = [json.loads(line) for line in report_path.read_text().splitlines()]
  assert [row["file"] for row in rows[4:]] == ["1.mp4", "2.mp4"]
  assert not any(row["used"] for row in rows[4:])


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the shared clips")
def test_all_real_clips_are_used(capsys):
  spec = ClipSpec(num_frames=16, fps=16, resolution=(64, 64))
  source = FilesSource.open(CLIPS, [spec])
  assert len(source) == 23
  assert "23 of 23" in capsys.readouterr().err
  clip = source.clip(0, np.random.default_rng(0))
  assert clip.shape == (16, 64, 64, 3)


def test_impossible_specs():
  good = {"num_frames": 4, "fps": 8.0, "resolution": (16, 16)}
  for bad in ({"num_frames": 0}, {"fps": 0.0}, {"resolution": (0, 16)}):
    with pytest.raises(UserError, match="above 0"):
      ClipSpec(**good | bad)
