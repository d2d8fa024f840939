"""Statistics of a study: everything paired by task and seed, every figure with its interval."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

_DRAWS = 4000
_FEWEST = 5  # items that a verdict needs
_RNG = lambda: np.random.default_rng(
    0
)  # the same draws for the same values: a report can be made again


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure, and the same figure of each bootstrap sample, `draws` [4000]. Two of the same items draw the same samples: their difference
    and their ratio are paired."""

    value: float
    draws: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Its percentile interval; nan where too many samples have no finite figure."""
        with np.errstate(invalid='ignore'):
            low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def __sub__(self, other: 'Estimate') -> 'Estimate':
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: 'Estimate') -> 'Estimate':
        with np.errstate(divide='ignore', invalid='ignore'):
            return Estimate(float(np.divide(self.value, other.value)), self.draws / other.draws)


def mean(values: Sequence[float]) -> Estimate:
    """The mean; nan of no values."""
    x = np.asarray(values, float)
    if not len(x):
        return Estimate(float('nan'), np.full(_DRAWS, np.nan))
    return Estimate(
        float(x.mean()), np.concatenate([x[drawn].mean(1) for drawn in _samples(len(x))])
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Spearman's rank correlation, ties sharing their mean rank; nan where all of x or of y is alike. Pairs are drawn, and ranked anew."""
    sides = [
        (np.argsort(v, kind='stable'), *np.unique(v, return_inverse=True, return_counts=True)[1:])
        for v in (np.asarray(x, float), np.asarray(y, float))
    ]

    def of(count_RxN):
        centred = []
        for order, group, sizes in sides:
            until = np.cumsum(count_RxN[:, order], axis=1)[
                :, np.cumsum(sizes) - 1
            ]  # how many are drawn up to each value
            rank = (until - (np.diff(until, axis=1, prepend=0) - 1) / 2)[:, group]
            centred.append(rank - (count_RxN * rank).mean(1, keepdims=True))
        weigh = lambda i, j: np.einsum('rn,rn,rn->r', count_RxN, centred[i], centred[j])
        with np.errstate(invalid='ignore'):
            return weigh(0, 1) / np.sqrt(weigh(0, 0) * weigh(1, 1))

    n, draws = len(x), []
    for drawn in _samples(n):
        flat = np.bincount(
            (drawn + n * np.arange(len(drawn))[:, None]).ravel(), minlength=drawn.size
        )
        draws.append(of(flat.reshape(drawn.shape).astype(float)))
    return Estimate(float(of(np.ones((1, n)))[0]), np.concatenate(draws))


def _samples(count: int):
    """Bootstrap samples of so many items, `_DRAWS` rows of their places, some rows at a time: the rows are the same however many."""
    rng, rows = _RNG(), max(1, (1 << 18) // count)
    for start in range(0, _DRAWS, rows):
        yield rng.integers(count, size=(min(rows, _DRAWS - start), count))


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The mean of a figure over tasks. `low`, `high`: its interval; `p`: two-sided, that it is 0; `error`, `freedom`: of the t-test;
    `pairs`, `wins`, `losses`: seeds in all, above 0 and below; `items`: the pieces that chance dealt."""

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
        """'holds' or 'reversed' where `p`, the contrast's own after a correction, is below 0.05 and there are at least 5 items: fewer of one
        sign come about by chance too often (4: 1 in 8) for a spread as small as theirs to mean anything; else 'undecided'."""
        return (
            'undecided'
            if not p < 0.05 or self.items < _FEWEST
            else 'holds'
            if self.mean > 0
            else 'reversed'
        )

    def smallest(self, level: float = 0.05, power: float = 0.8) -> float:
        """The mean that the t-test at `level` would find with probability `power`, from this many items of this spread; nan without a spread."""
        if not self.error > 0:
            return math.nan
        critical = stats.t.ppf(1 - level / 2, self.freedom)
        spread = critical * np.sqrt(
            stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, self.freedom) / self.freedom
        )  # scipy's nct is nan at few degrees
        found = lambda shift: (
            np.mean(stats.norm.sf(spread - shift) + stats.norm.cdf(-spread - shift)) - power
        )
        return float(optimize.brentq(found, 0, 10 * critical + 10) * self.error)


def contrast(
    tasks: Sequence[Sequence[Sequence[float]]], level: float = 0.95, successes: bool = False
) -> Contrast:
    """The mean of the tasks' means, each task counting the same; the tasks are those there are, what is drawn inside them is chance.

    tasks: of each its sources of chance, the differences by seed and, for text, by document (each with the task's mean). A task with one
    seed has no spread and is left out, unless no task has more.
    p is of a t-test with the degrees of freedom of Welch and Satterthwaite; where no task has a spread, and with `successes`, figures that are -1, 0
    or 1, of an exact sign test over the pairs that differ (McNemar 1947). The interval
    is a bootstrap of each source, its deviations made longer by what a bootstrap of n items lacks, sqrt(n/(n-1)) and t over z (after Hesterberg 2015, arXiv 1411.5279): of 5 normal values 95 % hold the mean, where plain percentiles hold 86 %.
    """
    several = [t for t in tasks if len(t[0]) > 1]
    held = several or [t for t in tasks if len(t[0])]
    if not held:
        return Contrast(math.nan)
    every = np.concatenate([np.asarray(t[0], float) for t in held])
    mean = float(np.mean([np.mean(t[0]) for t in held]))
    sources = [np.asarray(x, float) for t in several for x in t if len(x) > 1]
    known = dict(
        mean=mean,
        pairs=len(every),
        wins=int((every > 0).sum()),
        losses=int((every < 0).sum()),
        items=sum(len(x) for t in held for x in t),
    )
    if not sources or not np.isfinite(mean):
        return Contrast(**known)
    variance = np.array([x.var(ddof=1) / len(x) for x in sources]) / len(held) ** 2
    error = math.sqrt(variance.sum())
    moved = known['wins'] + known['losses']
    sign = float(stats.binomtest(known['wins'], moved).pvalue) if moved else 1.0
    if error < 1e-12:
        return Contrast(**known, low=mean, high=mean, p=sign, error=0.0)
    freedom = variance.sum() ** 2 / sum(v * v / (len(x) - 1) for v, x in zip(variance, sources))
    rng, deviation = _RNG(), 0.0
    for x in sources:
        drawn = x[rng.integers(len(x), size=(_DRAWS, len(x)))].mean(1) - x.mean()
        deviation += drawn * math.sqrt(len(x) / (len(x) - 1)) / len(held)
    wider = stats.t.ppf((1 + level) / 2, freedom) / stats.norm.ppf((1 + level) / 2)
    low, high = mean + wider * np.quantile(deviation, [(1 - level) / 2, (1 + level) / 2])
    if successes:
        low, high = max(low, -1.0), min(high, 1.0)
    p = sign if successes else 2 * stats.t.sf(abs(mean) / error, freedom)
    return Contrast(
        **known, low=float(low), high=float(high), p=float(p), error=error, freedom=float(freedom)
    )


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate."""
    found = stats.binomtest(successes, trials).proportion_ci(level, method='wilson')
    return float(found.low), float(found.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number (Holm 1979)."""
    p = np.asarray(p_values, float)
    order, adjusted, highest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def ranks(scores: np.ndarray) -> np.ndarray:
    """scores [blocks, arms], larger is better -> ranks from 1, ties sharing their mean rank."""
    return np.stack([stats.rankdata(-row, method='average') for row in scores])


def mean_ranks(by_task: dict[str, np.ndarray]) -> list[Contrast]:
    """{task: scores [seeds, arms]} -> the mean rank of each arm over the tasks."""
    ranked = [ranks(s) for s in by_task.values()]
    return [contrast([[r[:, arm]] for r in ranked]) for arm in range(ranked[0].shape[1])]


def friedman(blocks: np.ndarray) -> tuple[float, float]:
    """scores [tasks, arms] -> p of the Friedman test that all arms are alike, and the Nemenyi critical difference of mean ranks at
    0.05 (Demšar 2006); nan where there are too few."""
    count, arms = blocks.shape
    if count < 2 or arms < 3 or np.all(blocks == blocks[:, :1]):
        return float('nan'), float('nan')
    p = stats.friedmanchisquare(*blocks.T).pvalue
    return float(p), float(
        stats.studentized_range.ppf(0.95, arms, np.inf)
        / np.sqrt(2)
        * np.sqrt(arms * (arms + 1) / (6 * count))
    )
