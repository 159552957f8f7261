import math

import numpy as np
import pytest
from scipy import optimize, stats

from lumiere_jax.evals.verdicts import MEAN, SHARE, mean, share, wilson

Z = 1.959963984540054  # two-sided 95% of the normal distribution


@pytest.mark.parametrize(
  ("right", "count", "low", "high"),
  [
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_is_as_published(right, count, low, high):
  np.testing.assert_allclose(wilson(right, count), (low, high), atol=5e-5)


def test_wilson_is_the_same_for_right_and_wrong():
  low, high = wilson(2, 30)
  np.testing.assert_allclose(wilson(28, 30), (1 - high, 1 - low))
  assert wilson(0, 5)[0] == 0
  assert wilson(5, 5)[1] == 1


@pytest.mark.parametrize(("right", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_no_proportion_has_no_interval(right, count):
  with pytest.raises(ValueError, match="not a proportion"):
    wilson(right, count)


def test_a_share_counts_what_is_true():
  score = share([True, False, True, True])
  assert (score.kind, score.value, score.count) == (SHARE, 0.75, 4)
  assert (score.low, score.high) == wilson(3, 4)


def test_a_mean_has_students_interval(rng):
  values = rng.normal(5.0, 3.0, 9)
  expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  score = mean(list(values))
  assert (score.kind, score.count) == (MEAN, 9)
  assert score.value == pytest.approx(values.mean())
  np.testing.assert_allclose((score.low, score.high), expected)


def test_intervals_of_shares_hold_the_truth_nineteen_times_in_twenty():
  """Exactly, for every count there can be, on average over true shares."""
  ends = [wilson(right, 40) for right in range(41)]
  held = [
    sum(
      stats.binom.pmf(right, 40, truth)
      for right, (low, high) in enumerate(ends)
      if low <= truth <= high
    )
    for truth in np.linspace(0.02, 0.98, 49)
  ]
  assert 0.94 < np.mean(held) < 0.96
  assert min(held) > 0.83


def test_one_value_has_no_interval():
  with pytest.raises(ValueError, match="1 values"):
    mean([1.0])
  same = mean([2.0, 2.0])
  assert same.low == same.value == same.high == 2.0


@pytest.mark.parametrize(("right", "count"), [(3, 7), (50, 64), (127, 128)])
def test_wilson_inverts_the_score_test(right, count):
  """Its ends are the proportions that the count is just 1.96 deviations of."""
  away = lambda p: abs(right / count - p) / math.sqrt(p * (1 - p) / count) - Z
  share_ = right / count
  ends = (
    optimize.brentq(away, 1e-9, share_ - 1e-9),
    optimize.brentq(away, share_ + 1e-9, 1 - 1e-9),
  )
  np.testing.assert_allclose(wilson(right, count), ends, atol=1e-9)


def test_a_mean_is_as_scipy_has_it(rng):
  values = rng.normal(5.0, 3.0, 9)
  expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  score = mean(list(values))
  np.testing.assert_allclose((score.low, score.high), expected)
