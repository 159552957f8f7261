"""Fixtures of the tests of data."""

import fsspec
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


@pytest.fixture
def remote():
  """The file system of memory:// URLs, empty."""
  system = fsspec.filesystem("memory")
  system.store.clear()
  yield system
  system.store.clear()
