"""`make bench` and `make bench-check`, with sections that measure nothing."""

import argparse
import copy
import dataclasses
import json

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import tables
from benchmarks.speed.ratios import compare, summary
from tests.benchmarks import results

PLACE = "growth, windows 4"


@pytest.fixture
def flags(monkeypatch, tmp_path):
  """Flags of a run whose sections are those of `results`."""

  def of(name, section):
    rows = lambda bench: iter(
      results.measure(name, quick=bench.quick)
      if section.quick_seconds
      else results.STARTUP
    )
    return dataclasses.replace(section, measure=rows)

  sections = {k: of(k, v) for k, v in speed.SECTIONS.items()}
  monkeypatch.setattr(speed, "SECTIONS", sections)
  monkeypatch.setattr(speed, "versions", lambda flags: {"jax": "1"})
  page = tmp_path / "page.md"
  page.write_text(f"{tables.BEGIN}\n{tables.END}\n")
  return argparse.Namespace(
    peers="", rounds=2, only=[], out=tmp_path / "bench.json", page=page
  )


def test_bench_then_check(flags, capsys):
  speed.bench(flags)
  assert "### Start-up" in flags.page.read_text()
  found = json.loads(flags.out.read_text())
  assert list(found["sections"]) == list(speed.SECTIONS)
  assert found["sections"]["growth"]["rounds"] == 2
  printed = capsys.readouterr().out
  assert "left  growth, windows 4: seconds 4.00" in printed
  assert "about 230 s left  startup, import of main: 2.0 s" in printed
  assert speed.check(flags, flags.out) == 0
  assert "no ratio got more than 10% worse" in capsys.readouterr().out


def test_bench_keeps_other_sections(flags):
  speed.bench(flags)
  found = json.loads(flags.out.read_text())
  found["sections"]["limits"]["rows"] = ["kept"]
  flags.out.write_text(json.dumps(found))
  flags.only, flags.page = ["growth"], None
  speed.bench(flags)
  assert json.loads(flags.out.read_text())["sections"]["limits"]["rows"] == [
    "kept"
  ]


def test_check_reports_regressions(flags, capsys):
  found = results.everything()
  rows = found["sections"]["growth"]["rows"]
  (row,) = (row for row in rows if row["name"] == "windows 4")
  row["ratios"]["seconds"]["median"] = 3.0
  flags.out.write_text(json.dumps(found))
  assert speed.check(flags, flags.out) == 1
  *_, line = capsys.readouterr().out.splitlines()
  assert line.startswith(f"{PLACE}, seconds: got worse, 3.00 -> 4.00")


def test_check_repeats_sections_that_seem_worse(flags, monkeypatch, capsys):
  """A regression must be found twice; other sections are measured once."""
  speed.bench(flags)
  runs = []

  def of(name, section):
    def measure(bench):
      runs.append(name)
      rows = copy.deepcopy(list(section.measure(bench)))
      if runs == ["growth"]:
        for row in rows:
          row["ratios"] = {"seconds": summary([9, 9], [1, 1])}
      return iter(rows)

    return dataclasses.replace(section, measure=measure)

  growth = of("growth", speed.SECTIONS["growth"])
  monkeypatch.setitem(speed.SECTIONS, "growth", growth)
  limits = of("limits", speed.SECTIONS["limits"])
  monkeypatch.setitem(speed.SECTIONS, "limits", limits)
  assert speed.check(flags, flags.out) == 0
  assert runs == ["growth", "limits", "growth"]
  printed = capsys.readouterr().out
  assert "seem worse, measured again:\n  growth, " in printed
  assert f"\n  {PLACE}, seconds\n" in printed
  assert printed.endswith("no ratio got more than 10% worse\n")


def test_check_without_committed_results(flags, capsys):
  with pytest.raises(SystemExit, match="is missing; run make bench"):
    speed.check(flags, flags.out)
  found = results.everything()
  del found["sections"]["growth"]
  flags.out.write_text(json.dumps(found))
  assert speed.check(flags, flags.out) == 1
  assert f"{PLACE}: is not in the committed" in capsys.readouterr().out


OLD = [{"name": "a", "ratios": {"x": summary([0.9, 1.0, 1.1], [1, 1, 1])}}]


def test_compare_describes_what_got_worse():
  ratio = summary([1.2, 1.3, 1.4], [1, 1, 1])
  (line,) = compare("s", [{"name": "a", "ratios": {"x": ratio}}], OLD).values()
  expected = "got worse, 1.00 -> 1.30 (1.25 to 1.35); lower is better"
  assert line == expected
  assert not compare("s", OLD, OLD)


def test_compare_reports_what_is_missing():
  new = [{"name": "a", "ratios": {"y": {}}}, {"name": "b", "ratios": {}}]
  found = compare("s", new, OLD)
  assert list(found) == [("s", "a", "y"), ("s", "b")]
  assert all(line.startswith("is not in the") for line in found.values())
