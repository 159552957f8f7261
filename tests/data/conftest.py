"""A folder of videos that most tests of this room begin with."""

import pytest

from tests.data.videos import make, write_jsonl


@pytest.fixture
def folder(tmp_path):
  """Four captioned videos of two seconds."""
  folder = tmp_path / "videos"
  for k in range(4):
    make(folder, f"{k}.mp4")
  write_jsonl(folder, {f"{k}.mp4": f"video {k}" for k in range(4)})
  return folder
