"""The statistics of studies, against closed forms, exact enumerations and scipy."""

import numpy as np
import pytest
from scipy import stats

from evals import statistics as s

RNG = np.random.default_rng(0)


def held(values, draws=400):
    """Of so many draws: in how many the interval holds 0, and in how many p is below 0.05."""
    found = [s.contrast(values()) for _ in range(draws)]
    return np.mean([c.low <= 0 <= c.high for c in found]), np.mean([c.p < 0.05 for c in found])


@pytest.mark.parametrize(
    'values',
    [
        lambda: [[RNG.normal(size=3)]],
        lambda: [[RNG.normal(size=5)]],
        lambda: [
            [RNG.normal(size=RNG.integers(2, 6)) * scale] for scale in (0.01, 0.1, 1, 1, 1, 1)
        ],
        lambda: [
            [
                (
                    x := RNG.normal(size=(4, 1)) * 0.3
                    + RNG.normal(size=11)
                    + RNG.normal(size=(4, 11))
                ).mean(1),
                x.mean(0),
            ]
        ],
    ],
    ids=['three seeds', 'five seeds', 'uneven tasks', 'seeds and documents'],
)
def test_a_contrast_is_honest(values):
    """Catches plain percentiles, which hold the mean of 3 values in 75 % of draws and of 5 in 86 %,
    pairs pooled over tasks of other spread, and documents that are taken for certain (83 %)."""
    holds, found = held(values)
    assert 0.915 < holds < 0.985 and 0.015 < found < 0.085


def test_a_contrast_of_one_task_is_a_t_test():
    """Catches an unpaired test, and spread over tasks taken for chance: the same differences around
    other means have the error of their own."""
    x, z = RNG.normal(0.4, 1, 9), RNG.normal(size=6)
    assert s.contrast([[x]]).p == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
    apart = s.contrast([[z - z.mean() + 5], [z - z.mean() - 3]])
    assert (
        apart.mean == pytest.approx(1)
        and apart.error == pytest.approx(z.std(ddof=1) / np.sqrt(12))
        and apart.freedom == pytest.approx(10)
    )


def test_tasks_count_alike():
    """Catches tasks pooled by their number of seeds, a task of one seed taken for certain, and one
    that decides by itself that nothing is."""
    assert s.contrast([[[1.0, 1.1]], [[0.0, 0.1] * 10]]).mean == pytest.approx(0.55)
    both = s.contrast([[[0.3, 0.2, 0.4, 0.3]], [[0.1, 0.2, 0.3]], [[0.9]]])
    assert both.mean == pytest.approx(0.25) and both.pairs == 7 and both.verdict(both.p) == 'holds'
    alone = s.contrast([[[0.9]], [[]]])
    assert alone.mean == 0.9 and np.isnan(alone.low) and alone.verdict(alone.p) == 'undecided'
    assert s.contrast([[[]], [[]]]).pairs == 0 and np.isnan(s.contrast([]).mean)


def test_wilson():
    """Catches the normal approximation, which is empty at 0 of n. Values of Wilson's formula by
    hand."""
    z = stats.norm.ppf(0.975)
    for k, n in ((0, 10), (10, 10), (7, 10)):
        middle, half = (
            (k + z * z / 2) / (n + z * z),
            z / (n + z * z) * np.sqrt(k * (n - k) / n + z * z / 4),
        )
        np.testing.assert_allclose(s.wilson(k, n), (middle - half, middle + half), atol=1e-12)


def test_differences_without_spread():
    """Catches certainty from three differences that are the same, as of seeds that all succeed:
    both of their signs give 1 in 4; and from tasks without a spread of which one has the other
    sign."""
    same = s.contrast([[[1.0, 1.0, 1.0]]])
    assert (
        same.p == 0.25 and (same.low, same.high) == (1, 1) and same.verdict(same.p) == 'undecided'
    )
    assert s.contrast([[[0.0] * 9]]).p == 1 and s.contrast([[[0.5] * 9]]).p == pytest.approx(2**-8)
    assert s.contrast([[[1.0] * 3], [[-1.0] * 3], [[1.0] * 3]]).p == pytest.approx(
        stats.binomtest(6, 9).pvalue
    )
    rates = s.contrast([[[1.0] * 7 + [0.0] * 3]], successes=True)
    assert rates.p == pytest.approx(2**-6) and rates.high == 1 and rates.low > 0


def test_holm():
    """Catches Bonferroni (all times n), and adjusted values that fall."""
    np.testing.assert_allclose(s.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_smallest_effect():
    """Catches a figure that does not shrink with the pairs, or forgets how many comparisons there
    are. That mean difference is found in about 80 % of simulated samples."""
    spread = RNG.normal(size=12)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    effect = s.contrast([[spread]]).smallest()
    found = [stats.ttest_1samp(RNG.normal(effect, 1, 12), 0).pvalue < 0.05 for _ in range(2000)]
    assert abs(np.mean(found) - 0.8) < 0.04
    assert (
        s.contrast([[np.tile(spread, 4)]]).smallest()
        < effect
        < s.contrast([[spread]]).smallest(0.05 / 10)
    )
    assert np.isnan(s.contrast([[[0.3]]]).smallest())


def test_ranks_share_ties():
    """Catches ties that go to whoever comes first in the table."""
    np.testing.assert_array_equal(
        s.ranks(np.array([[0.9, 0.5, 0.9], [0.0, 0.0, 0.0]])), [[1.5, 3, 1.5], [2, 2, 2]]
    )
    found = s.mean_ranks(
        {'a': np.array([[3.0, 2.0, 1.0]] * 4), 'b': np.array([[3.0, 2.0, 1.0]] * 4)}
    )
    assert [(c.mean, c.low, c.high) for c in found] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_friedman():
    """Catches a critical difference of the wrong number of arms or blocks: Demšar 2006, table 5: q
    = 2.343 for three arms."""
    blocks = np.array([[3.0, 2.0, 1.0]] * 10)
    p, critical = s.friedman(blocks)
    assert p < 1e-3 and critical == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 10)), rel=1e-3)
    assert all(np.isnan(s.friedman(np.ones((5, 3)))))


def test_verdicts():
    """Catches a verdict from the mean alone, one from few pairs however clear, and one that forgets
    the correction."""

    def verdict(*differences):
        contrast = s.contrast([[differences]])
        return contrast.verdict(contrast.p)

    assert (
        verdict(0.3, 0.2, 0.4, 0.2, 0.3) == 'holds'
        and verdict(-0.3, -0.2, -0.4, -0.2, -0.3) == 'reversed'
    )
    assert (
        verdict(0.5, -0.4, 0.1, 0.3, 0.4) == 'undecided'
        and verdict(0.31, 0.3, 0.32, 0.3) == 'undecided'
    )
    assert s.contrast([[[0.3, 0.2, 0.4, 0.2, 0.3]]]).verdict(0.06) == 'undecided'


def test_spearman_and_its_samples_are_scipys():
    """Catches ranks of ties in the order of coming, ranks that are not drawn anew, and counts that
    are forgotten in the mean."""
    x = RNG.integers(0, 6, 60).astype(float)
    y = x + RNG.integers(0, 5, 60)
    found = s.spearman(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    sample = np.random.default_rng(0).integers(60, size=(4000, 60))
    assert found.draws[:50] == pytest.approx(
        [stats.spearmanr(x[row], y[row]).statistic for row in sample[:50]]
    )
    assert np.isnan(s.spearman([1, 1, 1], [1, 2, 3]).value)


def test_two_estimates_of_the_same_items_are_paired():
    """Catches differences and ratios of independent samples, and samples that depend on how many
    rows are drawn at a time."""
    x = RNG.random(300)
    assert (s.mean(x + 1) - s.mean(x)).interval() == pytest.approx((1, 1))
    assert (s.mean(3 * x) / s.mean(x)).interval() == pytest.approx((3, 3))
    other = s.mean(RNG.permutation(x)) - s.mean(x)
    assert other.value == pytest.approx(0) and np.ptp(other.interval()) > 0.08
    many = RNG.random(3000)
    rows = np.random.default_rng(0).integers(3000, size=(4000, 3000))
    np.testing.assert_array_equal(s.mean(many).draws, many[rows].mean(1))
    assert not np.isfinite((s.mean(x) / s.mean(0 * x)).interval()).any()  # and no warning
