"""The statistics of studies, against closed forms, exact enumerations and scipy."""
import itertools

import numpy as np
import pytest
from scipy import stats

from evals import statistics as s

RNG = np.random.default_rng(0)


def test_bootstrap_interval_covers():
    """Catches an interval of the values in place of one of their mean, and a wrong level: of 300 samples of 20, about 93 % hold the
    true mean (percentile intervals are a little short at this size)."""
    held = [low <= 0.0 <= high for low, high in (s.interval(RNG.normal(size=20)) for _ in range(300))]
    assert 0.88 < np.mean(held) < 0.97
    assert s.interval([0.4]) == (0.4, 0.4) and np.isnan(s.interval([])[0])


def test_strata_keep_their_weight():
    """Catches tasks pooled by their number of seeds: the mean is that of the tasks' means."""
    low, high = s.stratified_interval([[1.0] * 2, [0.0] * 20])
    assert low == high == 0.5


def test_wilson():
    """Catches the normal approximation, which is empty at 0 of n. Values of Wilson's formula by hand."""
    z = stats.norm.ppf(0.975)
    for k, n in ((0, 10), (10, 10), (7, 10)):
        middle, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * np.sqrt(k * (n - k) / n + z * z / 4)
        np.testing.assert_allclose(s.wilson(k, n), (middle - half, middle + half), atol=1e-12)


def test_paired_test_is_exact():
    """Catches an unpaired test and one that cannot reach its smallest p: five pairs of one sign give 2/32, as the documents warn."""
    assert s.paired_p([0.1, 0.2, 0.1, 0.3, 0.1]) == pytest.approx(2 / 32)
    x = RNG.normal(0.4, 1, 9)
    flips = np.array([(np.array(f) * x).mean() for f in itertools.product((1, -1), repeat=9)])
    assert s.paired_p(x) == pytest.approx((np.abs(flips) >= abs(x.mean()) - 1e-12).mean())
    assert s.paired_p([0.0, 0.0]) == 1.0 and s.paired_p([]) == 1.0
    assert s.paired_p(RNG.normal(1.0, 1, 40)) < 0.01


def test_holm():
    """Catches Bonferroni (all times n), and adjusted values that fall."""
    np.testing.assert_allclose(s.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_smallest_effect():
    """Catches a figure that does not shrink with the pairs. That mean difference is found in about 80 % of simulated samples."""
    spread = RNG.normal(size=12)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    effect = s.smallest_effect(spread)
    found = [stats.ttest_1samp(RNG.normal(effect, 1, 12), 0).pvalue < 0.05 for _ in range(2000)]
    assert abs(np.mean(found) - 0.8) < 0.04
    assert s.smallest_effect(np.tile(spread, 4)) < effect and np.isnan(s.smallest_effect([0.3]))


def test_ranks_share_ties():
    """Catches ties that go to whoever comes first in the table."""
    np.testing.assert_array_equal(s.ranks(np.array([[0.9, 0.5, 0.9], [0.0, 0.0, 0.0]])), [[1.5, 3, 1.5], [2, 2, 2]])
    mean, low, high = s.rank_intervals({'a': np.array([[3.0, 2.0, 1.0]] * 4), 'b': np.array([[3.0, 2.0, 1.0]] * 4)})
    assert mean.tolist() == low.tolist() == high.tolist() == [1, 2, 3]


def test_friedman():
    """Catches a critical difference of the wrong number of arms or blocks: Demšar 2006, table 5: q = 2.343 for three arms."""
    blocks = np.array([[3.0, 2.0, 1.0]] * 10)
    p, critical = s.friedman(blocks)
    assert p < 1e-3 and critical == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 10)), rel=1e-3)
    assert all(np.isnan(s.friedman(np.ones((5, 3)))))


def test_verdicts():
    """Catches a verdict from the mean alone, and one from a single seed."""
    assert s.verdict([[0.3, 0.2, 0.4], [0.1, 0.2, 0.3]])['verdict'] == 'holds'
    assert s.verdict([[-0.3, -0.2, -0.4]])['verdict'] == 'reversed'
    assert s.verdict([[0.5, -0.4, 0.1]])['verdict'] == 'undecided'
    assert s.verdict([[0.5]])['verdict'] == 'undecided' and s.verdict([[], []])['pairs'] == 0


def test_spearman_and_its_samples_are_scipys():
    """Catches ranks of ties in the order of coming, ranks that are not drawn anew, and counts that are forgotten in the mean."""
    x = RNG.integers(0, 6, 60).astype(float)
    y = x + RNG.integers(0, 5, 60)
    found = s.spearman(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    sample = np.random.default_rng(0).integers(60, size=(4000, 60))
    assert found.draws[:50] == pytest.approx([stats.spearmanr(x[row], y[row]).statistic for row in sample[:50]])
    assert np.isnan(s.spearman([1, 1, 1], [1, 2, 3]).value)


def test_two_estimates_of_the_same_items_are_paired():
    """Catches differences and ratios of independent samples, and samples that depend on how many rows are drawn at a time."""
    x = RNG.random(300)
    assert (s.mean(x + 1) - s.mean(x)).interval() == pytest.approx((1, 1))
    assert (s.mean(3 * x) / s.mean(x)).interval() == pytest.approx((3, 3))
    other = s.mean(RNG.permutation(x)) - s.mean(x)
    assert other.value == pytest.approx(0) and np.ptp(other.interval()) > 0.08
    many = RNG.random(3000)
    rows = np.random.default_rng(0).integers(3000, size=(4000, 3000))
    np.testing.assert_array_equal(s.mean(many).draws, many[rows].mean(1))
    assert not np.isfinite((s.mean(x) / s.mean(0 * x)).interval()).any()            # and no warning
