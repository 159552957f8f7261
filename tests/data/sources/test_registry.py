"""Sources as a config names them."""

import fsspec
import numpy as np
from PIL import Image
import pytest

from lumiere_jax.data.config import DataConfig
from lumiere_jax.data.loader import Loader, batches
from lumiere_jax.data.sources.files import FilesSource
from lumiere_jax.data.sources.mixture import Mix
from lumiere_jax.data.sources.registry import open_sources
from lumiere_jax.errors import UserError
from lumiere_jax.media.video_writer import write_video
from tests.data.videos import make, read_report, write_jsonl

SMALL = {"num_frames": 4, "fps": 8, "resolution": 16, "threads": 1}


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "videos"
  for k in range(3):
    make(folder, f"{k}.mp4")
  make(folder, "wide.mp4", size=(20, 60))
  names = ["0.mp4", "1.mp4", "2.mp4", "wide.mp4"]
  write_jsonl(folder, {name: f"video {name}" for name in names})
  return folder


@pytest.fixture
def pictures(tmp_path):
  folder = tmp_path / "pictures"
  folder.mkdir()
  sizes = {"a.png": (20, 20), "b.jpg": (60, 20), "tiny.png": (2, 2)}
  for name, size in sizes.items():
    Image.new("RGB", size, (90, 90, 90)).save(folder / name)
  write_jsonl(folder, {name: f"picture {name}" for name in sizes})
  return folder


def test_files_need_a_path():
  with pytest.raises(UserError, match=r"config\.data\.path=DIR"):
    open_sources(DataConfig(source="files"), seed=0, report=None)


def test_files_are_parted_and_reported(folder, tmp_path):
  config = DataConfig(path=str(folder), held_out=0.3, **SMALL)
  report = tmp_path / "data_report.jsonl"
  train, held_out = open_sources(config, seed=0, report=report)
  assert isinstance(train, FilesSource)
  assert len(train) + len(held_out) == 4
  assert len(held_out)
  assert {row["clip"] for row in read_report(report)} == {"4x16x16"}


def test_the_config_is_heeded(folder, tmp_path):
  make(folder, "small.mp4", size=(12, 12))
  still = np.full((16, 24, 32, 3), 90, np.uint8)
  write_video(folder / "still.mp4", still, fps=8)
  halves = np.concatenate([still, still + 90])
  halves[::2] -= 20
  write_video(folder / "halves.mp4", halves, fps=8)
  system = fsspec.filesystem("memory")
  for path in folder.glob("*.mp4"):
    system.pipe(f"/sources/aClass/{path.name}", path.read_bytes())
  prompts = tmp_path / "prompts.psv"
  prompts.write_text("aClass|said by prompts\n")
  config = DataConfig(
    path="memory://sources",
    cache=str(tmp_path / "cache"),
    prompts=str(prompts),
    buckets="4x8x24",
    max_enlarge=1.2,
    min_motion=1.0,
    scene_cuts=20.0,
    held_out=0.0,
    **SMALL,
  )
  report = tmp_path / "report.jsonl"
  train, _ = open_sources(config, seed=0, report=report)
  system.rm("/sources", recursive=True)
  assert set(all_captions(train)) == {"said by prompts"}
  assert [len(group.indices) for group in train.groups] == [5, 1]
  starts = [video.start_s for video in train.videos if "halves" in video.file]
  assert starts == [0, 2]
  reasons = {row["file"]: row["reason"] for row in read_report(report)}
  assert reasons["aClass/small.mp4"].startswith("too small")
  assert reasons["aClass/still.mp4"].startswith("static")
  assert (tmp_path / "cache").is_dir()


def test_pictures_are_mixed_into_training_alone(folder, pictures, tmp_path):
  config = DataConfig(
    path=str(folder),
    images=str(pictures),
    image_share=0.5,
    buckets="4x8x24 2x8x8",
    held_out=0.3,
    **SMALL,
  )
  report = tmp_path / "data_report.jsonl"
  train, held_out = open_sources(config, seed=0, report=report)
  assert isinstance(train, Mix)
  assert not any(c.startswith("picture") for c in all_captions(held_out))
  said = all_captions(train)
  assert {c for c in said if c.startswith("picture")} == {
    *("picture a.png", "picture b.jpg", "picture tiny.png")
  }
  # Of each size there is, in one frame.
  rows = read_report(tmp_path / "data_report_images.jsonl")
  clips = {row["file"]: row["clip"] for row in rows}
  assert clips == {"a.png": "1x16x16", "b.jpg": "1x8x24", "tiny.png": "1x8x8"}
  assert {row["file"] for row in read_report(report)} == {
    *("0.mp4", "1.mp4", "2.mp4", "wide.mp4")
  }
  made = batches(Loader(source=train, seed=0), batch_size=2, num_threads=1)
  shapes = [next(made)["video"].shape for _ in range(100)]
  assert {shape[1] for shape in shapes} == {1, 4}


def all_captions(source):
  return [c for k in range(len(source)) for c in source.captions(k)]


def test_pictures_beside_procedural_scenes(pictures):
  config = DataConfig(
    source="procedural",
    num_clips=8,
    images=str(pictures),
    **SMALL | {"fps": 16},
  )
  train, held_out = open_sources(config, seed=0, report=None)
  assert len(train) == 8 + 2
  assert train.clip(8).shape == (1, 16, 16, 3)
  assert train.clip(7).shape == (4, 16, 16, 3)
  assert not isinstance(held_out, Mix)
