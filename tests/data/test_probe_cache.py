"""A folder is decoded once, however often it is opened."""

import pytest

from lumiere_jax.data import filters
from tests.data.videos import make, open_files


@pytest.fixture
def decoded(monkeypatch):
  """Names of the files that are decoded to the end."""
  names, probe = [], filters.probe

  def spy(path, **options):
    names.append(path.name)
    return probe(path, **options)

  monkeypatch.setattr(filters, "probe", spy)
  return names


@pytest.fixture
def opened(folder, tmp_path, decoded):
  """Opens the folder; gives its videos and report."""

  def opened(**options):
    decoded.clear()
    source, rows = open_files(folder, cache=str(tmp_path / "cache"), **options)
    return source.videos, rows

  return opened


def test_probes_are_cached(opened, decoded):
  first = opened(scene_cuts=10.0)
  assert sorted(decoded) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
  assert opened(scene_cuts=10.0) == first
  assert decoded == []
  opened(scene_cuts=11.0)  # May find other cuts.
  assert len(decoded) == 4


def test_changed_and_damaged_files_are_decoded_again(opened, folder, decoded):
  opened()
  make(folder, "1.mp4", seconds=3.0)
  whole = (folder / "2.mp4").read_bytes()
  (folder / "2.mp4").write_bytes(whole[:900])
  videos, rows = opened()
  assert sorted(decoded) == ["1.mp4", "2.mp4"]
  assert [v.info.duration_s for v in videos] == [2.0, 3.0, 2.0]
  assert [name for name in rows if not rows[name]["used"]] == ["2.mp4"]
  (folder / "2.mp4").write_bytes(whole)
  assert len(opened()[0]) == 4


def test_an_incomplete_line_costs_only_that_line(opened, tmp_path, decoded):
  first = opened()
  (path,) = (tmp_path / "cache" / "probes").iterdir()
  lines = path.read_text().splitlines()
  torn = [line[:20] if '"3.mp4"' in line else line for line in lines]
  path.write_text("\n".join([*torn, "17"]))
  assert opened() == first
  assert decoded == ["3.mp4"]
  opened()
  assert decoded == []


def test_training_works_without_a_cache(opened, tmp_path, capsys):
  (tmp_path / "cache").write_text("a file")
  assert len(opened()[0]) == 4
  assert capsys.readouterr().err.count("videos will be decoded again") == 1
