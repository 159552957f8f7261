"""Ratios of pairs, goals, and what counts as worse."""

import pytest

from benchmarks.speed.ratios import reached, summary, worse


def test_summary_is_of_pairs():
  # A slow spell hits both of the last pair.
  ratio = summary([2, 3, 20, 4, 10], [1, 1, 10, 1, 5], goal=2.5)
  assert ratio == {
    "median": 2,
    "quartiles": [2, 3],
    "goal": 2.5,
    "better": "lower",
  }
  assert summary([2], [4], times=3)["median"] == 1.5


@pytest.mark.parametrize(
  ("value", "better", "expected"),
  [
    (1.0, "lower", True),
    (1.01, "lower", False),
    (1.0, "higher", True),
    (0.99, "higher", False),
  ],
)
def test_reached(value, better, expected):
  assert reached(value, 1.0, better) is expected


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_worse_is_three_quarters_of_the_pairs_beyond_ten_percent(better):
  def of(*values):
    if better == "lower":
      return summary(values, [1] * len(values))
    return summary([1] * len(values), values, better=better)

  old = of(0.9, 1.0, 1.1)
  assert worse(of(1.12, 1.2, 1.3), old)
  assert not worse(of(1.0, 1.2, 1.3), old)  # noise
  assert not worse(of(1.05, 1.06, 1.07), old)
  assert not worse(of(0.5, 0.6, 0.7), old)
