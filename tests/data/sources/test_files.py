"""A folder of videos and pictures as a source of clips."""

import itertools
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.data.dataset_report import Report
from lumiere_jax.data.sources.base import ClipSpec, UnreadableClip
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.video_index import Video
from lumiere_jax.errors import UserError
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.media.video_writer import write_video
from lumiere_jax.storage.remote import Folder
from tests.data.videos import (
  SPEC,
  frame_numbers,
  make,
  read_report,
  write_jsonl,
)
from tests.media.test_video_reader import encode

CLIPS = Path(__file__).parents[2] / "../shared/assets/clips"


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
  rows = read_report(report_path)
  assert [row["file"] for row in rows] == sorted(good | kinds)
  for row in rows:
    assert row["used"] == (row["file"] in good)
    if row["used"]:
      assert row["reason"] is None
      assert (row["seconds"], row["fps"], row["frames_at_fps"]) == (2, 8, 16)
      assert (row["width"], row["height"]) == (32, 24)
      assert (row["clip"], row["start_s"], row["end_s"]) == (
        *("4x16x16", None, None),
      )
    else:
      assert row["reason"].partition(":")[0] == kinds[row["file"]]
  short = next(row for row in rows if row["file"] == "short.mp4")
  assert (
    "0.25 s make 2 frames at 8 fps, a clip is 4 (0.50 s)" in short["reason"]
  )

  said = capsys.readouterr()
  assert not said.out
  assert "4 of 10 files" in said.err
  assert "1 too short" in said.err
  assert "1 no caption" in said.err
  assert str(report_path) in said.err
  assert len(source) == 4
  assert [source.captions(k) for k in range(4)] == [(c,) for c in good.values()]


def test_nothing_left_counts_the_reasons(tmp_path):
  for k in range(3):
    (tmp_path / f"{k}.mp4").touch()
  write_jsonl(tmp_path, {f"{k}.mp4": "x" for k in range(5)})
  message = "none of 5 files can be used: 3 empty file, 2 missing"
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


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the shared clips")
def test_all_real_clips_but_slow_ones_are_used(capsys):
  spec = ClipSpec(num_frames=16, fps=16, resolution=(64, 64))
  source = FilesSource.open(CLIPS, [spec])
  slow = {"car-detection.mp4", "one-by-one-person-detection.mp4"}
  assert len(source) == 21
  assert not slow & {video.file for video in source.videos}
  said = capsys.readouterr().err
  assert "21 of 23 files" in said
  assert "dropped 2 slow" in said
  assert "21 of these have a frame rate that is no multiple of 16" in said
  everything = FilesSource.open(CLIPS, [spec], min_fps_ratio=0)
  assert len(everything) == 23
  # Of single frames the rate does not matter.
  stills = ClipSpec(num_frames=1, fps=16, resolution=(64, 64))
  assert len(FilesSource.open(CLIPS, [stills])) == 23
  clip = source.clip(0, np.random.default_rng(0))
  assert clip.shape == (16, 64, 64, 3)


def spec(num_frames, height, width):
  return ClipSpec(num_frames=num_frames, fps=8, resolution=(height, width))


def test_each_video_serves_the_shape_that_suits_it(tmp_path, capsys):
  """By length, then aspect; all are used or named, and clips fit groups."""
  sizes = {
    "long.mp4": (1.0, (24, 24)),
    "wide.mp4": (1.0, (24, 48)),
    "short.mp4": (0.5, (24, 48)),
    "shorter.mp4": (0.25, (24, 24)),
  }
  for name, (seconds, size) in sizes.items():
    make(tmp_path, name, seconds, size=size)
  write_jsonl(tmp_path, dict.fromkeys(sizes, "x"))
  specs = [spec(8, 16, 16), spec(8, 12, 24), spec(4, 16, 16), spec(9, 8, 8)]
  path = tmp_path / "report.jsonl"
  source = FilesSource.open(tmp_path, specs, report_path=path)
  names = lambda group: [source.videos[i].file for i in group.indices]
  assert list(map(names, source.groups)) == [
    *(["long.mp4"], ["wide.mp4"], ["short.mp4"])
  ]
  assert [group.weight for group in source.groups] == [1, 1, 1]
  for group, shape in zip(source.groups, specs, strict=False):
    for index, rng in itertools.product(
      group.indices, (None, np.random.default_rng(0))
    ):
      expected = (shape.num_frames, *shape.resolution, 3)
      assert source.clip(index, rng).shape == expected
  rows = {row["file"]: row for row in read_report(path)}
  assert rows["wide.mp4"]["clip"] == "8x12x24"
  assert rows["short.mp4"]["clip"] == "4x16x16"
  assert rows["shorter.mp4"]["reason"].startswith("too short: 0.25 s make 2")
  assert rows["shorter.mp4"]["clip"] is None
  said = capsys.readouterr().err
  assert "3 of 4 files" in said
  for shape in ("8x16x16 (1)", "8x12x24 (1)", "4x16x16 (1)"):
    assert shape in said
  parts = source.split(0.3)
  assert sum(len(g.indices) for p in parts for g in p.groups) == 3
  assert all(g.indices for p in parts for g in p.groups)


def test_enlarging_has_a_limit(tmp_path):
  """A shape too large for a video is left to others."""
  make(tmp_path, "small.mp4", size=(8, 8))
  make(tmp_path, "tiny.mp4", size=(4, 40))
  make(tmp_path, "large.mp4", size=(32, 32))
  names = ["small.mp4", "tiny.mp4", "large.mp4"]
  write_jsonl(tmp_path, dict.fromkeys(names, "x"))
  specs = [spec(8, 32, 32), spec(4, 16, 16)]
  path = tmp_path / "report.jsonl"
  source = FilesSource.open(tmp_path, specs, report_path=path, max_enlarge=3.0)
  shapes = {video.file: video.spec for video in source.videos}
  assert shapes == {"small.mp4": specs[1], "large.mp4": specs[0]}
  reason = next(r["reason"] for r in read_report(path) if not r["used"])
  assert reason.startswith("too small: 40x4 had to be enlarged 4 times")


def picture(folder, name, level=100, size=(24, 32)):
  Image.new("RGB", size[::-1], (level,) * 3).save(folder / name)


def test_pictures_are_clips_of_one_frame(tmp_path):
  path = tmp_path / "report.jsonl"
  folder = tmp_path / "mixed"
  make(folder, "video.mp4")
  picture(folder, "a.jpg", 40)
  picture(folder, "b.WEBP", 80)
  picture(folder, "c.bmp", 120, size=(2, 300))
  picture(folder, "bare.png")
  (folder / "broken.png").write_bytes((folder / "bare.png").read_bytes()[:60])
  captioned = ("video.mp4", "a.jpg", "b.WEBP", "c.bmp", "broken.png")
  write_jsonl(folder, dict.fromkeys(captioned, "x"))

  source = FilesSource.open(folder, [spec(1, 16, 16)], report_path=path)
  assert [v.file for v in source.videos] == ["a.jpg", "b.WEBP", "video.mp4"]
  for index, level in ((0, 40), (1, 80)):
    clip = source.clip(index, np.random.default_rng(0))
    assert clip.shape == (1, 16, 16, 3)
    assert abs(clip.mean() - level) < 4
    assert source.videos[index].is_picture
  assert source.clip(2).shape == (1, 16, 16, 3)
  assert frame_numbers(source.clip(2)) == [7]
  rows = {row["file"]: row for row in read_report(path)}
  assert rows["a.jpg"]["seconds"] == 0
  assert rows["a.jpg"]["fps"] is None
  assert rows["c.bmp"]["reason"].startswith("too small: 300x2")
  assert rows["bare.png"]["reason"] == "no caption"
  assert rows["broken.png"]["reason"].startswith("damaged: ")

  FilesSource.open(folder, [SPEC], report_path=path)
  reasons = {row["file"]: row["reason"] for row in read_report(path)}
  assert reasons["video.mp4"] is None
  assert reasons["a.jpg"].startswith("a picture: ")
  mixed = FilesSource.open(folder, [SPEC, spec(1, 16, 16)])
  assert [len(group.indices) for group in mixed.groups] == [1, 2]


def test_animations_are_videos(tmp_path):
  images = [Image.new("RGB", (32, 24), (k, k, k)) for k in range(10, 170, 10)]
  for name in ("x.gif", "x.webp"):
    images[0].save(
      tmp_path / name, save_all=True, append_images=images[1:], duration=120
    )
  write_jsonl(tmp_path, {"x.gif": "x", "x.webp": "x"})
  source = FilesSource.open(tmp_path, [SPEC])
  assert [source.clip(k).shape[0] for k in range(len(source))] == [4, 4]


def blocks(*lengths):
  """Scenes of a still pattern each, with a square that moves in it."""
  made = []
  for seed, length in enumerate(lengths):
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 255, (4, 4, 3), np.uint8)
    scene = pattern.repeat(12, 0).repeat(12, 1)[None].repeat(length, 0)
    for k in range(length):
      scene[k, 16:32, k % 32 : k % 32 + 16] = 255
    made.append(scene)
  return np.concatenate(made)


def test_clips_are_taken_between_cuts(tmp_path, capsys):
  write_video(tmp_path / "x.mp4", blocks(16, 3, 20), fps=8)
  write_video(tmp_path / "y.mp4", blocks(16), fps=8)
  write_jsonl(tmp_path, {"x.mp4": "x", "y.mp4": "y"})
  path = tmp_path / "report.jsonl"
  source = FilesSource.open(tmp_path, [SPEC], report_path=path, scene_cuts=15.0)
  spans = [(v.file, v.start_s, v.end_s) for v in source.videos]
  assert spans == [("x.mp4", 0, 2), ("x.mp4", 2.375, 4.875), ("y.mp4", 0, 2)]
  assert source.captions(1) == ("x",)
  rows = read_report(path)
  times = [(r["file"], r["start_s"], r["end_s"], r["used"]) for r in rows]
  assert times == [
    ("x.mp4", 0, 2, True),
    ("x.mp4", 2, 2.375, False),
    ("x.mp4", 2.375, 4.875, True),
    ("y.mp4", None, None, True),
  ]
  assert rows[1]["reason"].startswith("too short: 0.38 s make 3 frames")
  said = capsys.readouterr().err
  assert "3 of 4 parts of 2 files" in said

  scenes = blocks(1, 1, 1)[:, :12, :12].reshape(3, -1).astype(int)
  for seed, (index, scene) in itertools.product(range(10), ((0, 0), (1, 2))):
    clip = source.clip(index, np.random.default_rng(seed))
    corner = clip[:, :4, :1].reshape(4, -1, 3).mean(1)
    distance = np.abs(corner[:, None] - scenes.reshape(3, -1, 3).mean(1))
    assert (distance.sum(-1).argmin(1) == scene).all()
  # Parts of one file are on one side, or the held-out loss is none.
  for part in source.split(0.5):
    assert {v.file for v in part.videos} in ({"x.mp4"}, {"y.mp4"})


def test_parts_of_one_file_are_not_held_out(tmp_path):
  write_video(tmp_path / "x.mp4", blocks(16, 16), fps=8)
  write_jsonl(tmp_path, {"x.mp4": "x"})
  source = FilesSource.open(tmp_path, [SPEC], scene_cuts=15.0)
  train, held_out = source.split(0.9)
  assert (len(train), len(held_out)) == (2, 0)


@pytest.mark.parametrize(
  ("fps", "clips_fps", "used"),
  [
    (10, 16, False),
    (12.5, 16, False),
    (15, 16, False),
    (15.98, 16, True),
    (16, 16, True),
    (24, 16, True),
    (24000 / 1001, 25, True),
    (30000 / 1001, 30, True),
    (24, 30, False),
  ],
)
def test_slow_videos_are_dropped(tmp_path, fps, clips_fps, used):
  make(tmp_path, "x.mp4", fps=fps, seconds=1.2)
  make(tmp_path, "fast.mp4", fps=60, seconds=1.2)
  write_jsonl(tmp_path, {"x.mp4": "x", "fast.mp4": "x"})
  spec = ClipSpec(num_frames=4, fps=clips_fps, resolution=(16, 16))
  report = tmp_path / "report.jsonl"
  source = FilesSource.open(tmp_path, [spec], report_path=report)
  row = {row["file"]: row for row in read_report(report)}["x.mp4"]
  assert row["used"] == used
  assert len(source) == 1 + used
  if not used:
    assert row["reason"].startswith(f"slow: {fps:g} frames a second, clips")
    assert "min_fps_ratio=0" in row["reason"]
  every = FilesSource.open(tmp_path, [spec], min_fps_ratio=0)
  assert len(every) == 2


def test_the_rate_is_measured_not_taken_from_the_file(tmp_path):
  """A gif that shows 5 frames a second in ticks of 1/100 s, and a file whose
  frames come at 5 a second after a header of 30."""
  make(tmp_path, "x.gif", fps=5, seconds=3)
  source = np.arange(15, dtype=np.uint8)[:, None, None, None]
  video = np.broadcast_to(10 + 10 * source, (15, 16, 16, 3))
  encode(
    *(tmp_path / "y.mkv", video),
    fps=30,
    pts=range(0, 15 * 200, 200),
    ticks=1000,
  )
  write_jsonl(tmp_path, {"x.gif": "x", "y.mkv": "y"})
  with pytest.raises(UserError, match="none of 2 files can be used: 2 slow"):
    FilesSource.open(tmp_path, [SPEC])
  spec = ClipSpec(num_frames=4, fps=5, resolution=(16, 16))
  assert len(FilesSource.open(tmp_path, [spec])) == 2


def test_slow_and_still_videos_serve_clips_of_one_frame(tmp_path):
  make(tmp_path, "slow.mp4", fps=4)
  still = np.full((16, 24, 32, 3), 90, np.uint8)
  write_video(tmp_path / "still.mp4", still, fps=8)
  write_jsonl(tmp_path, {"slow.mp4": "x", "still.mp4": "x"})
  stills = spec(1, 16, 16)
  source = FilesSource.open(tmp_path, [stills], min_motion=1.0)
  assert len(source) == 2
  source = FilesSource.open(tmp_path, [spec(4, 16, 16), stills])
  frames = {video.file: video.spec.num_frames for video in source.videos}
  assert frames == {"slow.mp4": 1, "still.mp4": 4}
  with pytest.raises(UserError, match="1 slow"):
    FilesSource.open(tmp_path, [stills], min_motion=1.0, whole_videos=True)


def test_rates_that_do_not_divide_are_counted(tmp_path, capsys):
  rates = {8: False, 16: False, 15.99: False, 12: True, 20: True, 25: True}
  for fps in rates:
    make(tmp_path, f"{fps}.mp4", fps=fps)
  Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
  names = [f"{fps}.mp4" for fps in rates] + ["picture.png"]
  write_jsonl(tmp_path, dict.fromkeys(names, "x"))
  report = tmp_path / "report.jsonl"
  FilesSource.open(tmp_path, [SPEC], report_path=report)
  uneven = {row["file"]: row["uneven"] for row in read_report(report)}
  assert uneven == {f"{fps}.mp4": is_ for fps, is_ in rates.items()} | {
    "picture.png": False
  }
  words = "3 of these have a frame rate that is no multiple of 8 fps"
  assert capsys.readouterr().err.count(words) == 1
  FilesSource.open(tmp_path, [spec(1, 16, 16)])
  assert "no multiple" not in capsys.readouterr().err


def test_blended_clips_stay_in_their_scene(tmp_path):
  """Of two scenes at 12 frames a second, shown at 8, no frame mixes them."""
  levels = np.repeat(np.array([40, 220], np.uint8), [17, 19])
  video = np.broadcast_to(levels[:, None, None, None], (36, 32, 32, 3))
  write_video(tmp_path / "x.mp4", video, fps=12, crf=1)
  write_jsonl(tmp_path, {"x.mp4": "x"})
  shape = ClipSpec(num_frames=11, fps=8, resolution=(16, 16), resample="blend")
  source = FilesSource.open(tmp_path, [shape], scene_cuts=15.0)
  assert [video.info.num_frames for video in source.videos] == [17, 19]
  for index in range(2):
    for seed in range(8):
      clip = source.clip(index, np.random.default_rng(seed)).astype(int)
      assert np.abs(clip - (40, 220)[index]).max() < 4


def test_videos_that_stand_still(tmp_path, capsys):
  make(tmp_path, "moves.mp4")
  still = np.full((16, 24, 32, 3), 90, np.uint8)
  write_video(tmp_path / "still.mp4", still, fps=8)
  write_jsonl(tmp_path, {"moves.mp4": "x", "still.mp4": "x"})
  source = FilesSource.open(tmp_path, [SPEC], min_motion=1.0)
  assert [video.file for video in source.videos] == ["moves.mp4"]
  said = capsys.readouterr().err
  assert "dropped 1 static" in said
  assert "still.mp4: static: changes by 0.00 grey levels" in said


def test_folders_of_classes(tmp_path):
  for label in ("BabyCrawling", "tai_chi"):
    make(tmp_path / label, "x.mp4")
  source = FilesSource.open(tmp_path, [SPEC])
  captions = [source.captions(k) for k in range(2)]
  assert captions == [("baby crawling",), ("tai chi",)]
  prompts = tmp_path / "prompts.psv"
  prompts.write_text("tai_chi|a person does tai chi\nBabyCrawling|a baby\n")
  source = FilesSource.open(tmp_path, [SPEC], prompts=str(prompts))
  assert source.captions(1) == ("a person does tai chi",)


@pytest.fixture
def remote(folder):
  """The folder's files as memory://videos."""
  system = fsspec.filesystem("memory")
  for path in folder.iterdir():
    system.pipe(f"/videos/{path.name}", path.read_bytes())
  yield system
  system.rm("/videos", recursive=True)


def test_a_remote_folder(remote, folder, tmp_path):
  cache = tmp_path / "cache"
  source = FilesSource.open("memory://videos", [SPEC], cache=str(cache))
  here = FilesSource.open(folder, [SPEC])
  assert [v.file for v in source.videos] == [v.file for v in here.videos]
  for k in range(4):
    assert source.captions(k) == here.captions(k)
    assert np.array_equal(source.clip(k), here.clip(k))
    assert source.local_path(k).is_relative_to(cache)
    assert here.local_path(k) == folder / f"{k}.mp4"
  remote.rm("/videos/2.mp4")
  assert source.clip(2).shape[0] == 4  # from the copy
  source.local_path(2).unlink()
  with pytest.raises(UnreadableClip, match=r"^memory://videos/2\.mp4: missing"):
    source.clip(2)


def test_remote_files_of_a_local_folder(remote, folder, tmp_path):
  names = ["0.mp4", "memory://videos/1.mp4", "memory://videos/gone.mp4"]
  for k in range(1, 4):
    (folder / f"{k}.mp4").unlink()
  write_jsonl(folder, dict.fromkeys(names, "x"))
  path = tmp_path / "report.jsonl"
  source = FilesSource.open(
    folder, [SPEC], report_path=path, cache=str(tmp_path / "cache")
  )
  assert [video.file for video in source.videos] == names[:2]
  assert source.clip(1).shape == (4, 16, 16, 3)
  assert read_report(path)[2]["reason"].startswith("missing: no such remote")


def test_impossible_specs():
  good = {"num_frames": 4, "fps": 8.0, "resolution": (16, 16)}
  for bad in ({"num_frames": 0}, {"fps": 0.0}, {"resolution": (0, 16)}):
    with pytest.raises(UserError, match="above 0"):
      ClipSpec(**good | bad)
