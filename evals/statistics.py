"""Statistics of a study: everything paired by task and seed, every figure with its interval."""
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats

_DRAWS = 4000
_RNG = lambda: np.random.default_rng(0)      # the same draws for the same values: a report can be made again


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
    return Estimate(float(x.mean()), np.concatenate([x[drawn].mean(1) for drawn in _samples(len(x))]))


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Spearman's rank correlation, ties sharing their mean rank; nan where all of x or of y is alike. Pairs are drawn, and ranked anew."""
    sides = [(np.argsort(v, kind='stable'), *np.unique(v, return_inverse=True, return_counts=True)[1:]) for v in (np.asarray(x, float), np.asarray(y, float))]

    def of(count_RxN):
        centred = []
        for order, group, sizes in sides:
            until = np.cumsum(count_RxN[:, order], axis=1)[:, np.cumsum(sizes) - 1]      # how many are drawn up to each value
            rank = (until - (np.diff(until, axis=1, prepend=0) - 1) / 2)[:, group]
            centred.append(rank - (count_RxN * rank).mean(1, keepdims=True))
        weigh = lambda i, j: np.einsum('rn,rn,rn->r', count_RxN, centred[i], centred[j])
        with np.errstate(invalid='ignore'):
            return weigh(0, 1) / np.sqrt(weigh(0, 0) * weigh(1, 1))
    n, draws = len(x), []
    for drawn in _samples(n):
        flat = np.bincount((drawn + n * np.arange(len(drawn))[:, None]).ravel(), minlength=drawn.size)
        draws.append(of(flat.reshape(drawn.shape).astype(float)))
    return Estimate(float(of(np.ones((1, n)))[0]), np.concatenate(draws))


def _samples(count: int):
    """Bootstrap samples of so many items, `_DRAWS` rows of their places, some rows at a time: the rows are the same however many."""
    rng, rows = _RNG(), max(1, (1 << 18) // count)
    for start in range(0, _DRAWS, rows):
        yield rng.integers(count, size=(min(rows, _DRAWS - start), count))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval (percentiles) of the mean; of a single value, the value itself."""
    return mean(values).interval(level)


def stratified_interval(strata: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of the strata's means, seeds drawn anew inside each stratum (task)."""
    rng = _RNG()
    means = np.mean([np.asarray(s, float)[rng.integers(len(s), size=(_DRAWS, len(s)))].mean(1) for s in strata], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate."""
    found = stats.binomtest(successes, trials).proportion_ci(level, method='wilson')
    return float(found.low), float(found.high)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided sign-flip permutation test of the mean difference, exact up to 12 pairs. With n pairs it cannot be below 2^(1-n)."""
    x = np.asarray(differences, float)
    if not len(x) or not np.any(x):
        return 1.0
    if len(x) <= 12:
        signs = np.array(list(itertools.product((1, -1), repeat=len(x))))
    else:
        signs = _RNG().choice((1, -1), size=(_DRAWS, len(x)))
        signs[0] = 1
    means = np.abs((signs * x).mean(1))
    return float((means >= abs(x.mean()) - 1e-12).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number (Holm 1979)."""
    p = np.asarray(p_values, float)
    order, adjusted, highest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def smallest_effect(differences: Sequence[float], power: float = 0.8, level: float = 0.05) -> float:
    """The mean difference that a paired t-test with this many pairs and this spread would find with probability `power`: nan
    below two pairs."""
    x = np.asarray(differences, float)
    if len(x) < 2 or x.std(ddof=1) == 0:
        return float('nan')
    n = len(x)
    critical = stats.t.ppf(1 - level / 2, n - 1)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = stats.nct.sf(critical, n - 1, middle) + stats.nct.cdf(-critical, n - 1, middle)
        low, high = (middle, high) if reached < power else (low, middle)
    return float(high * x.std(ddof=1) / np.sqrt(n))


def ranks(scores: np.ndarray) -> np.ndarray:
    """scores [blocks, arms], larger is better -> ranks from 1, ties sharing their mean rank."""
    return np.stack([stats.rankdata(-row, method='average') for row in scores])


def rank_intervals(by_task: dict[str, np.ndarray], level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """{task: scores [seeds, arms]} -> mean rank of each arm over the tasks, and its bootstrap interval (seeds drawn anew in each
    task)."""
    ranked = {t: ranks(s) for t, s in by_task.items()}
    mean = np.mean([r.mean(0) for r in ranked.values()], axis=0)
    rng = _RNG()
    draws = np.mean([r[rng.integers(len(r), size=(_DRAWS, len(r)))].mean(1) for r in ranked.values()], axis=0)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return mean, low, high


def friedman(blocks: np.ndarray) -> tuple[float, float]:
    """scores [blocks, arms] -> p of the Friedman test that all arms are alike, and the Nemenyi critical difference of mean ranks at
    0.05 (Demšar 2006); nan where there are too few."""
    count, arms = blocks.shape
    if count < 2 or arms < 3 or np.all(blocks == blocks[:, :1]):
        return float('nan'), float('nan')
    p = stats.friedmanchisquare(*blocks.T).pvalue
    return float(p), float(stats.studentized_range.ppf(0.95, arms, np.inf) / np.sqrt(2) * np.sqrt(arms * (arms + 1) / (6 * count)))


def verdict(differences_by_task: Sequence[Sequence[float]]) -> dict:
    """Of a claim that a difference is above 0: paired differences of each task, seeds inside. 'holds' where the whole bootstrap
    interval of the mean is above 0, 'reversed' where it is below, else 'undecided'."""
    strata = [s for s in differences_by_task if len(s)]
    if not strata:
        return {'verdict': 'undecided', 'mean': float('nan'), 'low': float('nan'), 'high': float('nan'), 'pairs': 0, 'wins': 0, 'losses': 0}
    low, high = stratified_interval(strata)
    every = np.concatenate([np.asarray(s, float) for s in strata])
    enough = min(len(s) for s in strata) > 1
    return {'verdict': 'holds' if enough and low > 0 else 'reversed' if enough and high < 0 else 'undecided',
            'mean': float(np.mean([np.mean(s) for s in strata])), 'low': low, 'high': high, 'pairs': len(every),
            'wins': int((every > 0).sum()), 'losses': int((every < 0).sum())}
