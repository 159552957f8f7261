"""Data sources as a config names them."""

import numpy as np
import pytest

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.loader import Loader, batches
from lumiere_jax.data.sources.mixture import MixtureSource
from lumiere_jax.data.sources.registry import open_sources
from lumiere_jax.errors import UserError
from lumiere_jax.media.video_writer import write_video
from tests.data.videos import make, picture, read_report, write_jsonl

SMALL = {"num_frames": 4, "fps": 8, "resolution": 16, "threads": 1}
VIDEOS = ["0.mp4", "1.mp4", "2.mp4", "wide.mp4"]


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "videos"
  for name in VIDEOS:
    make(folder, name, size=(20, 60) if name == "wide.mp4" else (24, 32))
  write_jsonl(folder, {name: f"video {name}" for name in VIDEOS})
  return folder


@pytest.fixture
def pictures(tmp_path):
  folder = tmp_path / "pictures"
  sizes = {"a.png": (20, 20), "b.jpg": (20, 60), "tiny.png": (2, 2)}
  for name, size in sizes.items():
    picture(folder, name, size=size)
  write_jsonl(folder, {name: f"picture {name}" for name in sizes})
  return folder


def open_(report=None, **values):
  return open_sources(DataConfig(**SMALL | values), seed=0, report=report)


def test_files_need_a_path():
  with pytest.raises(UserError, match=r"config\.data\.path=DIR"):
    open_(source="files")


def test_the_config_is_applied(folder, tmp_path, remote):
  make(folder, "small.mp4", size=(12, 12))
  make(folder, "still.mp4", level=90)
  halves = np.full((32, 24, 32, 3), 90, np.uint8)
  halves[16:] = 180
  halves[::2] -= 20
  write_video(folder / "halves.mp4", halves, fps=8)
  for path in folder.glob("*.mp4"):
    remote.pipe(f"/sources/aClass/{path.name}", path.read_bytes())
  prompts = tmp_path / "prompts.psv"
  prompts.write_text("aClass|from the prompts\n")
  report = tmp_path / "report.jsonl"
  train, _ = open_(
    report,
    path="memory://sources",
    cache=str(tmp_path / "cache"),
    prompts=str(prompts),
    buckets="4x8x24",
    max_enlarge=1.2,
    min_motion=1.0,
    scene_cuts=20.0,
    held_out=0.0,
  )
  assert set(all_captions(train)) == {"from the prompts"}
  assert [len(group.indices) for group in train.groups] == [5, 1]
  starts = [video.start_s for video in train.videos if "halves" in video.file]
  assert starts == [0, 2]
  reasons = {row["file"]: row["reason"] for row in read_report(report)}
  assert reasons["aClass/small.mp4"].startswith("too small")
  assert reasons["aClass/still.mp4"].startswith("static")
  assert (tmp_path / "cache").is_dir()


def test_pictures_are_mixed_into_training_only(folder, pictures, tmp_path):
  report = tmp_path / "data_report.jsonl"
  train, held_out = open_(
    report,
    path=str(folder),
    images=str(pictures),
    image_share=0.5,
    buckets="4x8x24 2x8x8",
    held_out=0.3,
  )
  assert isinstance(train, MixtureSource)
  assert len(train) - 3 + len(held_out) == 4
  assert len(held_out)
  assert not any(c.startswith("picture") for c in all_captions(held_out))
  captions = {c for c in all_captions(train) if c.startswith("picture")}
  assert captions == {"picture a.png", "picture b.jpg", "picture tiny.png"}
  # Of each size of clips, with one frame.
  rows = read_report(tmp_path / "data_report_images.jsonl")
  clips = {row["file"]: row["clip"] for row in rows}
  assert clips == {"a.png": "1x16x16", "b.jpg": "1x8x24", "tiny.png": "1x8x8"}
  assert [row["file"] for row in read_report(report)] == VIDEOS
  made = batches(Loader(source=train, seed=0), batch_size=2, num_threads=1)
  shapes = [next(made)["video"].shape for _ in range(100)]
  assert {shape[1] for shape in shapes} == {1, 4}


def all_captions(source):
  return [c for k in range(len(source)) for c in source.captions(k)]


def test_pictures_with_procedural_scenes(pictures):
  train, held_out = open_(
    source="procedural", num_clips=8, images=str(pictures), fps=16
  )
  assert len(train) == 8 + 2
  assert train.clip(8).shape == (1, 16, 16, 3)
  assert train.clip(7).shape == (4, 16, 16, 3)
  assert not isinstance(held_out, MixtureSource)
