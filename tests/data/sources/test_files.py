"""A folder of videos and pictures as a source of clips."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from lumiere_jax.data.dataset_report import Row
from lumiere_jax.data.filters import Filters
from lumiere_jax.data.sources.base import UnreadableClip
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.video_index import Video
from lumiere_jax.errors import UserError
from lumiere_jax.media.video_reader import VideoInfo
from lumiere_jax.media.video_writer import write_video
from tests.data.videos import (
  SPEC,
  frame_numbers,
  make,
  open_files,
  open_videos,
  picture,
  read_report,
  spec,
  write_jsonl,
)
from tests.media.test_video_reader import encode

CLIPS = Path(__file__).parents[3] / "../shared/assets/clips"


def names(source):
  return [video.file for video in source.videos]


def test_every_video_is_reported(folder, tmp_path, capsys):
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

  path = tmp_path / "out" / "data_report.jsonl"
  source = FilesSource.open(folder, [SPEC], report_path=path)
  rows = read_report(path)
  assert [row["file"] for row in rows] == sorted(good | kinds)
  for row in rows:
    assert row["used"] == (row["file"] in good)
    if row["used"]:
      shape = row["width"], row["height"], row["clip"]
      assert shape == (32, 24, "4x16x16")
      assert (row["seconds"], row["fps"], row["frames_at_fps"]) == (2, 8, 16)
      assert row["reason"] is row["start_s"] is row["end_s"] is None
    else:
      assert row["reason"].partition(":")[0] == kinds[row["file"]]

  printed = capsys.readouterr()
  assert not printed.out
  for words in ("4 of 10 files", "1 too short", "1 no caption", str(path)):
    assert words in printed.err
  assert [source.captions(k) for k in range(len(source))] == [
    (caption,) for caption in good.values()
  ]


def test_no_usable_video_is_an_error(tmp_path):
  for k in range(3):
    (tmp_path / f"{k}.mp4").touch()
  write_jsonl(tmp_path, [f"{k}.mp4" for k in range(5)])
  with pytest.raises(UserError, match=r"none of 5 .*: 3 empty file, 2 miss"):
    open_files(tmp_path)
  assert len(read_report(tmp_path / "data_report.jsonl")) == 5


def test_clips_start_anywhere(folder):
  source = FilesSource.open(folder, [SPEC])
  first = set()
  for seed in range(60):
    clip = source.clip(0, np.random.default_rng(seed))
    assert (clip.shape, clip.dtype) == ((4, 16, 16, 3), np.uint8)
    numbers = frame_numbers(clip)
    assert np.diff(numbers).tolist() == [1, 1, 1]
    first.add(numbers[0])
  # 16 frames: a clip of 4 begins on any of 0 to 12; 12 only at the very end.
  assert set(range(12)) <= first <= set(range(13))
  assert np.array_equal(clip, source.clip(0, np.random.default_rng(59)))
  assert frame_numbers(source.clip(2)) == [6, 7, 8, 9]  # The middle.


def test_a_video_of_exactly_one_clip(tmp_path):
  source, _ = open_videos(tmp_path, {"x.mp4": {"seconds": 0.5}})
  for rng in (None, np.random.default_rng(0)):
    assert frame_numbers(source.clip(0, rng)) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [2, 3, 12])
def test_split(folder, count):
  write_jsonl(folder, [f"{k}.mp4" for k in range(count)])
  for k in range(4, count):
    make(folder, f"{k}.mp4", seconds=0.5)
  source = FilesSource.open(folder, [SPEC])
  for fraction in (0.01, 0.3, 0.99):
    train, held_out = source.split(fraction)
    assert names(train)
    assert names(held_out)
    assert sorted(names(train) + names(held_out)) == names(source)
    again = FilesSource.open(folder, [SPEC]).split(fraction)
    assert names(again[1]) == names(held_out)
  assert names(source.split(0)[0]) == names(source)
  for fraction in (-0.1, 1.0):
    with pytest.raises(UserError) as error:
      source.split(fraction)
    assert error.value.field == f"held_out={fraction}"


def test_the_split_of_a_video_does_not_depend_on_others():
  info = VideoInfo(duration_s=9.0, num_frames=9, height=9, width=9)
  videos = [
    Video(file=f"{k}.mp4", captions=("x",), info=info, spec=SPEC)
    for k in range(2000)
  ]

  def held_out(some):
    found = [(Row(file=video.file, used=True), video) for video in some]
    source = FilesSource(found, [SPEC], "here", None)
    return set(names(source.split(0.1)[1]))

  everything, half = held_out(videos), held_out(videos[::2])
  assert half == everything & {video.file for video in videos[::2]}
  assert 150 < len(everything) < 250
  assert held_out(videos[:1]) == set()


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the shared clips")
def test_all_real_clips_but_slow_ones_are_used(capsys):
  shape = spec(16, 64, 64, fps=16)
  source = FilesSource.open(CLIPS, [shape])
  slow = {"car-detection.mp4", "one-by-one-person-detection.mp4"}
  assert len(source) == 21
  assert not slow & set(names(source))
  printed = capsys.readouterr().err
  assert "21 of 23 files" in printed
  assert "dropped 2 slow" in printed
  assert "21 of these have a frame rate that is not a multiple of 16" in printed
  assert (
    len(FilesSource.open(CLIPS, [shape], filters=Filters(min_fps_ratio=0)))
    == 23
  )
  # The frame rate does not matter for single frames.
  assert len(FilesSource.open(CLIPS, [spec(1, 64, 64, fps=16)])) == 23
  clip = source.clip(0, np.random.default_rng(0))
  assert clip.shape == (16, 64, 64, 3)


def test_each_video_serves_the_best_shape(tmp_path, capsys):
  """By length, then aspect; all are used or reported, and clips fit groups."""
  sizes = {
    "long.mp4": {"seconds": 1.0, "size": (24, 24)},
    "wide.mp4": {"seconds": 1.0, "size": (24, 48)},
    "short.mp4": {"seconds": 0.5, "size": (24, 48)},
    "shorter.mp4": {"seconds": 0.25, "size": (24, 24)},
  }
  specs = [spec(8), spec(8, 12, 24), spec(4), spec(9, 8, 8)]
  source, rows = open_videos(tmp_path, sizes, *specs)
  members = [[names(source)[i] for i in g.indices] for g in source.groups]
  assert members == [["long.mp4"], ["wide.mp4"], ["short.mp4"]]
  assert [group.weight for group in source.groups] == [1, 1, 1]
  for group, shape in zip(source.groups, specs, strict=False):
    for rng in (None, np.random.default_rng(0)):
      expected = (shape.num_frames, *shape.resolution, 3)
      assert source.clip(group.indices[0], rng).shape == expected
  shapes = [rows[name]["clip"] for name in sizes]
  assert shapes == ["8x16x16", "8x12x24", "4x16x16", None]
  assert rows["shorter.mp4"]["reason"].startswith("too short: 0.25 s")
  printed = capsys.readouterr().err
  assert "3 of 4 files" in printed
  assert all(f"{shape} (1)" in printed for shape in shapes[:3])
  parts = source.split(0.3)
  assert sum(len(g.indices) for p in parts for g in p.groups) == 3
  assert all(g.indices for p in parts for g in p.groups)


def test_enlarging_has_a_limit(tmp_path):
  """A shape too large for a video is left to others."""
  sizes = {"small.mp4": (8, 8), "tiny.mp4": (4, 40), "large.mp4": (32, 32)}
  videos = {name: {"size": size} for name, size in sizes.items()}
  specs = [spec(8, 32, 32), spec(4)]
  source, rows = open_videos(tmp_path, videos, *specs, max_enlarge=3.0)
  shapes = {video.file: video.spec for video in source.videos}
  assert shapes == {"small.mp4": specs[1], "large.mp4": specs[0]}
  reason = rows["tiny.mp4"]["reason"]
  assert reason.startswith("too small: 40x4 must be enlarged 4 times")


def test_pictures_are_clips_of_one_frame(tmp_path):
  folder = tmp_path / "mixed"
  make(folder, "video.mp4")
  picture(folder, "a.jpg", 40)
  picture(folder, "b.WEBP", 80)
  picture(folder, "c.bmp", 120, size=(2, 300))
  picture(folder, "bare.png")
  (folder / "broken.png").write_bytes((folder / "bare.png").read_bytes()[:60])
  write_jsonl(folder, ["video.mp4", "a.jpg", "b.WEBP", "c.bmp", "broken.png"])

  source, rows = open_files(folder, spec(1))
  assert names(source) == ["a.jpg", "b.WEBP", "video.mp4"]
  for index, level in ((0, 40), (1, 80)):
    clip = source.clip(index, np.random.default_rng(0))
    assert clip.shape == (1, 16, 16, 3)
    assert abs(clip.mean() - level) < 4
    assert source.videos[index].is_picture
  assert frame_numbers(source.clip(2)) == [7]
  assert (rows["a.jpg"]["seconds"], rows["a.jpg"]["fps"]) == (0, None)
  assert rows["c.bmp"]["reason"].startswith("too small: 300x2")
  assert rows["bare.png"]["reason"] == "no caption"
  assert rows["broken.png"]["reason"].startswith("damaged: ")

  _, rows = open_files(folder)
  assert rows["video.mp4"]["used"]
  assert rows["a.jpg"]["reason"].startswith("a picture: ")
  mixed, _ = open_files(folder, SPEC, spec(1))
  assert [len(group.indices) for group in mixed.groups] == [1, 2]


def scenes(*lengths):
  """Scenes of a still pattern each, in which a square moves."""
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
  write_video(tmp_path / "x.mp4", scenes(16, 3, 20), fps=8)
  write_video(tmp_path / "y.mp4", scenes(16), fps=8)
  write_jsonl(tmp_path, {"x.mp4": "x", "y.mp4": "y"})
  source, _ = open_files(tmp_path, scene_cuts=15.0)
  spans = [(v.file, v.start_s, v.end_s) for v in source.videos]
  assert spans == [("x.mp4", 0, 2), ("x.mp4", 2.375, 4.875), ("y.mp4", 0, 2)]
  assert source.captions(1) == ("x",)
  rows = read_report(tmp_path / "data_report.jsonl")
  assert [(r["file"], r["start_s"], r["end_s"], r["used"]) for r in rows] == [
    ("x.mp4", 0, 2, True),
    ("x.mp4", 2, 2.375, False),
    ("x.mp4", 2.375, 4.875, True),
    ("y.mp4", None, None, True),
  ]
  assert rows[1]["reason"].startswith("too short: 0.38 s give 3 frames")
  assert "3 of 4 parts of 2 files" in capsys.readouterr().err

  corners = scenes(1, 1, 1)[:, :12, :12].reshape(3, -1, 3).astype(int).mean(1)
  for seed, (index, scene) in itertools.product(range(10), ((0, 0), (1, 2))):
    clip = source.clip(index, np.random.default_rng(seed))
    corner = clip[:, :4, :1].reshape(4, -1, 3).mean(1)
    distance = np.abs(corner[:, None] - corners).sum(-1)
    assert (distance.argmin(1) == scene).all()
  # Shots of one file are in one part, or the held-out loss is meaningless.
  for part in source.split(0.5):
    assert set(names(part)) in ({"x.mp4"}, {"y.mp4"})
  write_jsonl(tmp_path, ["x.mp4"])
  train, held_out = open_files(tmp_path, scene_cuts=15.0)[0].split(0.9)
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
  rates = {"x.mp4": fps, "fast.mp4": 60}
  videos = {name: {"fps": f, "seconds": 1.2} for name, f in rates.items()}
  shape = spec(4, fps=clips_fps)
  source, rows = open_videos(tmp_path, videos, shape)
  assert rows["x.mp4"]["used"] == used
  assert len(source) == 1 + used
  if not used:
    reason = rows["x.mp4"]["reason"]
    assert reason.startswith(f"slow: {fps:g} frames per second")
    assert "min_fps_ratio=0" in reason
  assert len(open_files(tmp_path, shape, min_fps_ratio=0)[0]) == 2


def test_the_frame_rate_is_measured(tmp_path):
  """A gif of 5 fps in ticks of 1/100 s, and a file of 5 fps whose header
  states 30."""
  make(tmp_path, "x.gif", fps=5, seconds=3)
  levels = np.arange(15, dtype=np.uint8)[:, None, None, None]
  video = np.broadcast_to(10 + 10 * levels, (15, 16, 16, 3))
  pts = range(0, 15 * 200, 200)
  encode(tmp_path / "y.mkv", video, fps=30, pts=pts, ticks=1000)
  write_jsonl(tmp_path, ["x.gif", "y.mkv"])
  with pytest.raises(UserError, match="none of 2 files can be used: 2 slow"):
    open_files(tmp_path)
  assert len(open_files(tmp_path, spec(4, fps=5))[0]) == 2


def test_static_videos_are_dropped(tmp_path, capsys):
  videos = {"moves.mp4": {}, "still.mp4": {"level": 90}}
  source, rows = open_videos(tmp_path, videos, min_motion=1.0)
  assert names(source) == ["moves.mp4"]
  assert "dropped 1 static" in capsys.readouterr().err
  reason = rows["still.mp4"]["reason"]
  assert reason.startswith("static: changes by 0.00 grey levels")
  # Without a report, the reasons are printed.
  FilesSource.open(tmp_path, [SPEC], filters=Filters(min_motion=1.0))
  assert f"still.mp4: {reason}" in capsys.readouterr().err


def test_slow_and_static_videos_serve_clips_of_one_frame(tmp_path):
  videos = {"slow.mp4": {"fps": 4}, "still.mp4": {"level": 90}}
  source, _ = open_videos(tmp_path, videos, spec(1), min_motion=1.0)
  assert len(source) == 2
  source, _ = open_files(tmp_path, SPEC, spec(1))
  frames = {video.file: video.spec.num_frames for video in source.videos}
  assert frames == {"slow.mp4": 1, "still.mp4": 4}
  with pytest.raises(UserError, match="1 slow"):
    open_files(tmp_path, spec(1), min_motion=1.0, whole_videos=True)


def test_uneven_frame_rates_are_counted(tmp_path, capsys):
  rates = {8: False, 16: False, 15.99: False, 12: True, 20: True, 25: True}
  uneven = {f"{fps}.mp4": expected for fps, expected in rates.items()}
  for fps in rates:
    make(tmp_path, f"{fps}.mp4", fps=fps)
  picture(tmp_path, "picture.png")
  uneven["picture.png"] = False
  write_jsonl(tmp_path, list(uneven))
  _, rows = open_files(tmp_path)
  assert {name: row["uneven"] for name, row in rows.items()} == uneven
  words = "3 of these have a frame rate that is not a multiple of 8 fps"
  assert capsys.readouterr().err.count(words) == 1
  open_files(tmp_path, spec(1))
  assert "a multiple of" not in capsys.readouterr().err


def test_blending_stays_within_a_shot(tmp_path):
  """Of two scenes at 12 fps, resampled to 8, no frame mixes them."""
  levels = np.repeat(np.array([40, 220], np.uint8), [17, 19])
  video = np.broadcast_to(levels[:, None, None, None], (36, 32, 32, 3))
  write_video(tmp_path / "x.mp4", video, fps=12, crf=1)
  write_jsonl(tmp_path, ["x.mp4"])
  source, _ = open_files(tmp_path, spec(11, resample="blend"), scene_cuts=15.0)
  assert [video.info.num_frames for video in source.videos] == [17, 19]
  for index, seed in itertools.product(range(2), range(8)):
    clip = source.clip(index, np.random.default_rng(seed)).astype(int)
    assert np.abs(clip - (40, 220)[index]).max() < 4


@pytest.fixture
def videos(remote, folder):
  """The folder's files as memory://videos."""
  for path in folder.iterdir():
    remote.pipe(f"/videos/{path.name}", path.read_bytes())
  return remote


def test_a_remote_folder(videos, folder, tmp_path):
  cache = tmp_path / "cache"
  source = FilesSource.open("memory://videos", [SPEC], cache=str(cache))
  here = FilesSource.open(folder, [SPEC])
  assert names(source) == names(here)
  for k in range(4):
    assert source.captions(k) == here.captions(k)
    assert np.array_equal(source.clip(k), here.clip(k))
    assert source.local_path(f"{k}.mp4").is_relative_to(cache)
    assert here.local_path(f"{k}.mp4") == folder / f"{k}.mp4"
  videos.rm("/videos/2.mp4")
  assert source.clip(2).shape[0] == 4  # From the copy.
  source.local_path("2.mp4").unlink()
  with pytest.raises(UnreadableClip, match=r"^memory://videos/2\.mp4: missing"):
    source.clip(2)


def test_remote_files_of_a_local_folder(videos, folder, tmp_path):
  files = ["0.mp4", "memory://videos/1.mp4", "memory://videos/gone.mp4"]
  for k in range(1, 4):
    (folder / f"{k}.mp4").unlink()
  write_jsonl(folder, files)
  source, rows = open_files(folder, cache=str(tmp_path / "cache"))
  assert names(source) == files[:2]
  assert source.clip(1).shape == (4, 16, 16, 3)
  assert rows[files[2]]["reason"].startswith("missing: no such remote")


def test_impossible_specs():
  good = {"num_frames": 4, "height": 16, "fps": 8.0}
  for name in good:
    with pytest.raises(UserError, match="above 0"):
      spec(**good | {name: 0})


def test_folders_of_classes(tmp_path):
  for label in ("BabyCrawling", "tai_chi"):
    make(tmp_path / label, "x.mp4")
  source, _ = open_files(tmp_path)
  captions = [source.captions(k) for k in range(2)]
  assert captions == [("baby crawling",), ("tai chi",)]
  prompts = tmp_path / "prompts.psv"
  prompts.write_text("tai_chi|a person does tai chi\nBabyCrawling|a baby\n")
  source, _ = open_files(tmp_path, prompts=str(prompts))
  assert source.captions(1) == ("a person does tai chi",)
