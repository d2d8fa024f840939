"""Hard negatives: texts that look as if they answered a query, and are not known to.

Dimensions: Q queries, N texts, D of a vector.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from data import words

_TOGETHER = 1 << 24  # scores at a time, 64 MiB


def by_vectors(
    queries_QxD: np.ndarray,
    texts_NxD: np.ndarray,
    positives: Sequence[Sequence[int]],
    barred: Sequence[Sequence[int]],
    count: int,
    margin: float = 0.95,
) -> list[np.ndarray]:
    """The texts nearest to each query that score below `margin` times its positive (the lowest of several): what is nearer may be an
    answer that nobody marked (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831, section 3.1, TopK-PercPos with 0.95).

    Args:
      queries_QxD, texts_NxD: float32, of length 1, so that a product is a cosine.
      positives: of each query the texts that answer it, at least one.
      barred: of each query other texts that are no negatives of it: the query's own text.
      count: negatives of each query, at most.
      margin: share of the positive's score; of one below 0 as far below it as of its opposite.
    Returns:
      ids [<= count] int64 of each query, the nearest first, of equal ones the lower id first.
    """
    found: list[np.ndarray] = []
    rows = max(1, _TOGETHER // max(1, len(texts_NxD)))
    for first in range(0, len(queries_QxD), rows):
        for scores_N in queries_QxD[first : first + rows] @ texts_NxD.T:
            own = positives[len(found)]
            least = float(scores_N[list(own)].min())
            allowed_N = scores_N < least - (1 - margin) * abs(least)
            found.append(best(scores_N, _but(allowed_N, *own, *barred[len(found)]), count))
    return found


def by_words(
    queries: Sequence[str],
    texts: Sequence[str],
    positives: Sequence[Sequence[int]],
    barred: Sequence[Sequence[int]],
    count: int,
) -> list[np.ndarray]:
    """The same by BM25 (Robertson and Zaragoza 2009), without a model: texts that share words with the query. There is no margin: the scores
    of two texts are no measure of which one answers."""
    scores = _scores_of(texts)
    return [
        best(scores_N, _but(scores_N > 0, *own, *other), count)
        for scores_N, own, other in zip(map(scores, queries), positives, barred)
    ]


def _scores_of(texts: Sequence[str]) -> Callable[[str], np.ndarray]:
    """A query -> the scores of all texts [N]."""
    import bm25s

    logging.getLogger('bm25s').setLevel(logging.WARNING)  # it tells of its insides
    found, index = [words.terms(text, joined=True) for text in texts], bm25s.BM25()
    if not any(found):
        return lambda query: np.zeros(len(texts), np.float32)
    index.index(found, show_progress=False)

    def scores(query: str) -> np.ndarray:
        wanted = words.asked(query, joined=True)
        return index.get_scores(wanted) if wanted else np.zeros(len(texts), np.float32)

    return scores


def _but(allowed_N: np.ndarray, *barred: int) -> np.ndarray:
    """Without those that are barred."""
    allowed_N[list(barred)] = False
    return allowed_N


def best(scores_N: np.ndarray, allowed_N: np.ndarray, count: int) -> np.ndarray:
    """Ids [<= count] int64 of the highest scores that are allowed (bool [N]), the highest first, of equal ones the lower id first."""
    ids = np.flatnonzero(allowed_N)
    if len(ids) > count > 0:
        least = np.partition(scores_N[ids], -count)[-count]
        ids = ids[scores_N[ids] >= least]
    return ids[np.argsort(-scores_N[ids], kind='stable')][:count]
