"""The results as Markdown, and the page that holds them."""

import copy

import pytest

from benchmarks.speed import tables
from tests.benchmarks.results import everything

FOUND = everything()
PAGE = f"# Speed\n\nbefore\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"


@pytest.fixture(scope="module")
def text():
  return tables.render(FOUND)


@pytest.mark.parametrize(
  "line",
  [
    "on 2 cores; jax 1, torch 2.",
    "2026-01-02, rounds: 2.",
    "| medium, 16 pictures | forward | 1.00 | 2.00 | 0.50 | <= 1: reached |"
    " 1,024 | 1,024 | 1.00 | <= 1: reached |",
    "| make_a_video | train | 91 | 50 | 1.82 | >= 1.1: reached |"
    " 1,024 | 1,024 |",
    "| make_a_video | 1.10 | <= 1.15: reached | 1.00 | 5.0 (2.0) | 5.0 (2.0) |",
    "| frames 80 | 5.00 | 1.00 | 5.00 | <= 5.2: reached | 5 | 1.00 | 1.00 |",
    "| matmul 2048 | 100 | 50 | 100 | 50 | 2.00 |  |  |  |",
    "(96 channels, 32x32): 1.00, >= 0.7: reached; and of all its 3x3 conv",
    "| train, empty cache | 30.0 | 21.0 | <= 20: not reached |",
    "| sample, empty cache | 50.0 |  |  |",
    "| import of main | 2.0 | 1.5 | <= 2: reached |",
    "| GPU | not measured |",
  ],
)
def test_line(text, line):
  assert line in text


def test_tables_are_whole(text):
  blocks = [b for b in text.split("\n\n") if b.startswith("|")]
  for block in blocks:
    assert len({line.count("|") for line in block.splitlines()}) == 1
  assert len(blocks) == 8


def test_sections_not_measured_are_left_out():
  found = copy.deepcopy(FOUND)
  del found["sections"]["growth"]
  assert "### Growth" not in tables.render(found)


def test_spread_is_shown():
  ratio = {"median": 1, "quartiles": [0.9, 1.1], "goal": None}
  ratio["better"] = "lower"
  assert tables.cells(ratio) == ("1.00 (0.90 to 1.10)", "")


def test_write_leaves_the_rest_of_a_page(tmp_path, text):
  page = tmp_path / "page.md"
  page.write_text(PAGE)
  for _ in range(2):
    tables.write(FOUND, page)
    assert page.read_text() == PAGE.replace("old", text)


@pytest.mark.parametrize(
  "page", ["", tables.BEGIN, tables.END + tables.BEGIN, PAGE + PAGE]
)
def test_comments_missing_or_twice(page):
  with pytest.raises(ValueError, match="needs one"):
    tables.replace(page, "new")
