"""Hard negatives: texts that look as if they answered a query, and are not known to.

Dimensions: Q queries, N texts, D of a vector.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from data import words

_SCORES_AT_A_TIME = 1 << 24  # 64 MiB


def by_vectors(
    queries_QxD: np.ndarray,
    texts_NxD: np.ndarray,
    positives: Sequence[Sequence[int]],
    barred: Sequence[Sequence[int]],
    count: int,
    margin: float = 0.95,
) -> list[np.ndarray]:
    """Returns, for each query, the nearest texts that score well below its positive.

    What is nearer than `margin` times the score of the positive (the lowest of several) may be an
    answer that nobody marked (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831, section 3.1,
    TopK-PercPos with 0.95).

    Args:
      queries_QxD, texts_NxD: float32, of length 1, so that a product is a cosine.
      positives: for each query the texts that answer it, at least one.
      barred: for each query other texts that are no negatives of it: the query's own text.
      count: negatives of a query, at most.
      margin: share of the positive's score; of one below 0 as far below it as of its opposite.
    Returns:
      ids [<= count] int64 for each query, the nearest first, of equal ones the lower id first.
    """
    negatives: list[np.ndarray] = []
    rows = max(1, _SCORES_AT_A_TIME // max(1, len(texts_NxD)))
    for first in range(0, len(queries_QxD), rows):
        for scores_N in queries_QxD[first : first + rows] @ texts_NxD.T:
            query = len(negatives)
            own = list(positives[query])
            lowest = float(scores_N[own].min())
            allowed_N = scores_N < lowest - (1 - margin) * abs(lowest)
            allowed_N[[*own, *barred[query]]] = False
            negatives.append(best(scores_N, allowed_N, count))
    return negatives


def by_words(
    queries: Sequence[str],
    texts: Sequence[str],
    positives: Sequence[Sequence[int]],
    barred: Sequence[Sequence[int]],
    count: int,
) -> list[np.ndarray]:
    """Returns, for each query, the texts that share words with it, by BM25; without a model.

    Robertson and Zaragoza 2009. There is no margin: the scores of two texts are no measure of which
    one answers. Arguments and result as for `by_vectors`.
    """
    scores_of = _index_words(texts)
    negatives = []
    for query, own, other in zip(queries, positives, barred):
        scores_N = scores_of(query)
        allowed_N = scores_N > 0
        allowed_N[[*own, *other]] = False
        negatives.append(best(scores_N, allowed_N, count))
    return negatives


def _index_words(texts: Sequence[str]) -> Callable[[str], np.ndarray]:
    """Returns a function from a query to the BM25 scores of all texts, float32 [N]."""
    import bm25s

    logging.getLogger('bm25s').setLevel(logging.WARNING)  # it tells of its insides
    terms = [words.terms(text, joined=True) for text in texts]
    index = bm25s.BM25()
    has_words = any(terms)
    if has_words:
        index.index(terms, show_progress=False)

    def scores_of(query: str) -> np.ndarray:
        asked = words.asked(query, joined=True) if has_words else []
        return index.get_scores(asked) if asked else np.zeros(len(texts), np.float32)

    return scores_of


def best(scores_N: np.ndarray, allowed_N: np.ndarray, count: int) -> np.ndarray:
    """Returns the ids of the highest scores that are allowed (bool [N]): int64 [<= count].

    The highest comes first, of equal ones the lower id.
    """
    ids = np.flatnonzero(allowed_N)
    if len(ids) > count > 0:
        lowest = np.partition(scores_N[ids], -count)[-count]
        ids = ids[scores_N[ids] >= lowest]
    return ids[np.argsort(-scores_N[ids], kind='stable')][:count]
