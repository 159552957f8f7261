"""A folder is decoded once, however often it is opened."""

import pytest

from lumiere_jax.data import filters
from lumiere_jax.data.sources.files import FilesSource
from tests.data.videos import SPEC, make, read_report


@pytest.fixture
def decoded(monkeypatch):
  """Names of the files that are decoded to their end."""
  names, probe = [], filters.probe

  def watching(path, **options):
    names.append(path.name)
    return probe(path, **options)

  monkeypatch.setattr(filters, "probe", watching)
  return names


def opened(folder, tmp_path, **options):
  report = tmp_path / "data_report.jsonl"
  options = {"cache": str(tmp_path / "cache")} | options
  source = FilesSource.open(folder, [SPEC], report_path=report, **options)
  return source.videos, read_report(report)


def test_what_was_decoded_is_remembered(folder, tmp_path, decoded):
  first = opened(folder, tmp_path, scene_cuts=10.0)
  assert sorted(decoded) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
  decoded.clear()
  assert opened(folder, tmp_path, scene_cuts=10.0) == first
  assert decoded == []
  opened(folder, tmp_path, scene_cuts=11.0)  # may find other cuts
  assert len(decoded) == 4


def test_changed_and_damaged_files_are_decoded_again(folder, tmp_path, decoded):
  opened(folder, tmp_path)
  make(folder, "1.mp4", seconds=3.0)
  whole = (folder / "2.mp4").read_bytes()
  (folder / "2.mp4").write_bytes(whole[:900])
  decoded.clear()
  videos, rows = opened(folder, tmp_path)
  assert sorted(decoded) == ["1.mp4", "2.mp4"]
  assert [v.info.duration_s for v in videos] == [2.0, 3.0, 2.0]
  assert [row["file"] for row in rows if not row["used"]] == ["2.mp4"]
  (folder / "2.mp4").write_bytes(whole)
  assert len(opened(folder, tmp_path)[0]) == 4


def test_a_torn_line_costs_that_line_alone(folder, tmp_path, decoded):
  first = opened(folder, tmp_path)
  (memory,) = (tmp_path / "cache" / "probes").iterdir()
  lines = memory.read_text().splitlines()
  torn = [line[:20] if '"3.mp4"' in line else line for line in lines]
  memory.write_text("\n".join([*torn, "17"]))
  decoded.clear()
  assert opened(folder, tmp_path) == first
  assert decoded == ["3.mp4"]
  decoded.clear()
  opened(folder, tmp_path)
  assert decoded == []


def test_training_does_without_a_memory(folder, tmp_path, capsys):
  (tmp_path / "cache").write_text("a file")
  assert len(opened(folder, tmp_path)[0]) == 4
  said = capsys.readouterr().err
  assert said.count("videos will be decoded again") == 1
