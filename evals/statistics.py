"""Statistics of a study: everything paired by task and seed, every figure with its interval."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import optimize, stats

_DRAWS = 4000
_FEWEST = 5  # items that a verdict needs


def _rng() -> np.random.Generator:
    """Returns the same draws each time: a report can be made again."""
    return np.random.default_rng(0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure, `value`, and the same figure of each bootstrap sample, `draws` [4000].

    Two of the same items draw the same samples: their difference and their ratio are paired.
    """

    value: float
    draws: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns the percentile interval; nan where too many samples have no finite figure."""
        with np.errstate(invalid='ignore'):
            low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def __sub__(self, other: 'Estimate') -> 'Estimate':
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: 'Estimate') -> 'Estimate':
        with np.errstate(divide='ignore', invalid='ignore'):
            return Estimate(float(np.divide(self.value, other.value)), self.draws / other.draws)


def mean(values: Sequence[float]) -> Estimate:
    """Returns the mean; nan of no values."""
    x = np.asarray(values, float)
    if not len(x):
        return Estimate(float('nan'), np.full(_DRAWS, np.nan))
    draws = [x[drawn].mean(1) for drawn in _samples(len(x))]
    return Estimate(float(x.mean()), np.concatenate(draws))


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Returns Spearman's rank correlation; nan where all of x or of y is alike.

    Ties share their mean rank. Pairs are drawn, and ranked anew.
    """
    # Of each side: the order of its values, and the group of equal values that each is of.
    sides = []
    for values in (np.asarray(x, float), np.asarray(y, float)):
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        sides.append((np.argsort(values, kind='stable'), group, sizes))

    def correlate(count_RxN: np.ndarray) -> np.ndarray:
        """Returns the correlation [R] of samples that have pair n so many times."""
        centred = []
        for order, group, sizes in sides:
            # How many are drawn up to each value gives the mean rank of its group.
            until = np.cumsum(count_RxN[:, order], axis=1)[:, np.cumsum(sizes) - 1]
            rank = (until - (np.diff(until, axis=1, prepend=0) - 1) / 2)[:, group]
            centred.append(rank - (count_RxN * rank).mean(1, keepdims=True))

        def covariance(i: int, j: int) -> np.ndarray:
            return np.einsum('rn,rn,rn->r', count_RxN, centred[i], centred[j])

        with np.errstate(invalid='ignore'):
            return covariance(0, 1) / np.sqrt(covariance(0, 0) * covariance(1, 1))

    n = len(x)
    draws = []
    for drawn in _samples(n):
        row = n * np.arange(len(drawn))[:, None]
        count = np.bincount((drawn + row).ravel(), minlength=drawn.size)
        draws.append(correlate(count.reshape(drawn.shape).astype(float)))
    return Estimate(float(correlate(np.ones((1, n)))[0]), np.concatenate(draws))


def _samples(count: int) -> Iterator[np.ndarray]:
    """Yields bootstrap samples of so many items, some rows at a time, `_DRAWS` rows in all.

    A row holds places of items. The rows are the same however many come at a time.
    """
    rng = _rng()
    rows = max(1, (1 << 18) // count)
    for start in range(0, _DRAWS, rows):
        yield rng.integers(count, size=(min(rows, _DRAWS - start), count))


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The mean of a figure over tasks.

    low, high: its interval.
    p: two-sided, that it is 0.
    error, freedom: of the t-test.
    pairs, wins, losses: seeds in all, above 0 and below.
    items: the pieces that chance dealt.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = 1.0
    error: float = math.nan
    freedom: float = math.nan
    pairs: int = 0
    wins: int = 0
    losses: int = 0
    items: int = 0

    def verdict(self, p: float) -> str:
        """Returns 'holds', 'reversed' or 'undecided'; `p`: its own after a correction.

        Undecided where `p` is not below 0.05 or there are fewer than 5 items: so few of one sign
        come about by chance too often (4: 1 in 8) for a spread as small as theirs to mean anything.
        """
        if not p < 0.05 or self.items < _FEWEST:
            return 'undecided'
        return 'holds' if self.mean > 0 else 'reversed'

    def smallest(self, level: float = 0.05, power: float = 0.8) -> float:
        """Returns the mean that the t-test at `level` would find with probability `power`.

        From this many items of this spread; nan without a spread.
        """
        if not self.error > 0:
            return math.nan
        critical = stats.t.ppf(1 - level / 2, self.freedom)

        # The noncentral t by its quantiles: scipy's nct is nan at few degrees.
        quantiles = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, self.freedom)
        spread = critical * np.sqrt(quantiles / self.freedom)

        def missing_power(shift: float) -> float:
            finds = stats.norm.sf(spread - shift) + stats.norm.cdf(-spread - shift)
            return np.mean(finds) - power

        return float(optimize.brentq(missing_power, 0, 10 * critical + 10) * self.error)


def contrast(
    tasks: Sequence[Sequence[Sequence[float]]], level: float = 0.95, successes: bool = False
) -> Contrast:
    """Returns the mean of the tasks' means, each task counting the same, with its interval.

    The tasks are those there are; what is drawn inside them is chance. p is of a t-test with the
    degrees of freedom of Welch and Satterthwaite; where no task has a spread, and with `successes`,
    of an exact sign test over the pairs that differ (McNemar 1947). The interval is a bootstrap of
    each source, its deviations made longer by what a bootstrap of n items lacks, sqrt(n/(n-1)) and
    t over z (after Hesterberg 2015, arXiv 1411.5279): of 5 normal values 95 % hold the mean, where
    plain percentiles hold 86 %.

    Args:
      tasks: of each its sources of chance, the differences by seed and, for text, by document (each
        with the task's mean). A task with one seed has no spread and is left out, unless no task
        has more.
      level: of the interval.
      successes: whether the figures are -1, 0 or 1.
    """
    several = [sources for sources in tasks if len(sources[0]) > 1]
    counted = several or [sources for sources in tasks if len(sources[0])]
    if not counted:
        return Contrast(math.nan)
    every = np.concatenate([np.asarray(by_seed, float) for by_seed, *_ in counted])
    mean = float(np.mean([np.mean(by_seed) for by_seed, *_ in counted]))
    known = dict(
        mean=mean,
        pairs=len(every),
        wins=int((every > 0).sum()),
        losses=int((every < 0).sum()),
        items=sum(len(x) for sources in counted for x in sources),
    )
    spread = [np.asarray(x, float) for sources in several for x in sources if len(x) > 1]
    if not spread or not np.isfinite(mean):
        return Contrast(**known)

    # The test. Without a spread there is only the sign of each pair.
    variance = np.array([x.var(ddof=1) / len(x) for x in spread]) / len(counted) ** 2
    error = math.sqrt(variance.sum())
    moved = known['wins'] + known['losses']
    sign = float(stats.binomtest(known['wins'], moved).pvalue) if moved else 1.0
    if error < 1e-12:
        return Contrast(**known, low=mean, high=mean, p=sign, error=0.0)
    freedom = variance.sum() ** 2 / sum(v * v / (len(x) - 1) for v, x in zip(variance, spread))

    # The interval: deviations of the bootstrap, of all sources together.
    rng = _rng()
    deviation = 0.0
    for x in spread:
        drawn = x[rng.integers(len(x), size=(_DRAWS, len(x)))].mean(1) - x.mean()
        deviation += drawn * math.sqrt(len(x) / (len(x) - 1)) / len(counted)
    wider = stats.t.ppf((1 + level) / 2, freedom) / stats.norm.ppf((1 + level) / 2)
    low, high = mean + wider * np.quantile(deviation, [(1 - level) / 2, (1 + level) / 2])
    if successes:
        low, high = max(low, -1.0), min(high, 1.0)
    p = sign if successes else 2 * stats.t.sf(abs(mean) / error, freedom)
    return Contrast(
        **known, low=float(low), high=float(high), p=float(p), error=error, freedom=float(freedom)
    )


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of a rate."""
    interval = stats.binomtest(successes, trials).proportion_ci(level, method='wilson')
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted for their number (Holm 1979)."""
    p = np.asarray(p_values, float)
    adjusted = np.empty(len(p))
    highest = 0.0
    for rank, i in enumerate(np.argsort(p)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def ranks(scores: np.ndarray) -> np.ndarray:
    """Returns ranks from 1 of scores [blocks, arms], larger is better.

    Ties share their mean rank.
    """
    return np.stack([stats.rankdata(-row, method='average') for row in scores])


def mean_ranks(by_task: dict[str, np.ndarray]) -> list[Contrast]:
    """Returns the mean rank of each arm over the tasks, {task: scores [seeds, arms]}."""
    ranked = [ranks(s) for s in by_task.values()]
    return [contrast([[r[:, arm]] for r in ranked]) for arm in range(ranked[0].shape[1])]


def friedman(blocks: np.ndarray) -> tuple[float, float]:
    """Returns p of the Friedman test, and the Nemenyi critical difference of mean ranks at 0.05.

    blocks: scores [tasks, arms]. The test is that all arms are alike (Demšar 2006). Both are nan
    where there are too few.
    """
    count, arms = blocks.shape
    if count < 2 or arms < 3 or np.all(blocks == blocks[:, :1]):
        return float('nan'), float('nan')
    p = stats.friedmanchisquare(*blocks.T).pvalue
    quantile = stats.studentized_range.ppf(0.95, arms, np.inf) / np.sqrt(2)
    return float(p), float(quantile * np.sqrt(arms * (arms + 1) / (6 * count)))
