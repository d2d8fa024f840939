"""Several rankings of the same documents made one.

Scores are {document: score}; larger is better, and equal ones are in the order of the documents'
ids.
"""

import math
from collections.abc import Mapping, Sequence


def fuse(rankings: Sequence[Sequence[str]], k: int = 60) -> list[tuple[str, float]]:
    """Returns (document, score), best first, by reciprocal rank fusion.

    Cormack, Clarke and Büttcher 2009: a score is the sum over rankings of 1 / (k + rank); a
    document that a ranking lacks gets nothing from it.

    Args:
      rankings: documents, best first.
      k: what is added to each rank.
    """
    parts: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, document in enumerate(ranking, 1):
            parts.setdefault(document, []).append(1 / (k + rank))

    # Exact sums: documents whose ranks are exchanged do tie.
    scores = {document: math.fsum(shares) for document, shares in parts.items()}
    return [(document, scores[document]) for document in order(scores)]


def interpolate(a: Mapping[str, float], b: Mapping[str, float], weight: float) -> dict[str, float]:
    """Returns (1 - weight) * a + weight * b.

    The scores of each are moved to 0 .. 1 (Lee 1997, "Analyses of multiple evidence combination").
    A document that one lacks has 0 there.
    `weight` is to be chosen on other queries than those that it is measured on.
    """
    total: dict[str, float] = {}
    for scores, share in ((a, 1 - weight), (b, weight)):
        low = min(scores.values(), default=0)
        high = max(scores.values(), default=0)
        for document, score in scores.items():
            scaled = (score - low) / (high - low) if high > low else 1.0
            total[document] = total.get(document, 0.0) + share * scaled
    return total


def order(scores: Mapping[str, float]) -> list[str]:
    """Returns the documents, best first; those with one score by their ids."""
    return sorted(scores, key=lambda document: (-scores[document], document))
