"""Several rankings of the same documents made one. Scores are {document: score}, larger is better and equal ones are in the order of the documents' ids."""

import math
from collections.abc import Mapping, Sequence


def fuse(rankings: Sequence[Sequence[str]], k: int = 60) -> list[tuple[str, float]]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): rankings, best first -> (document, sum over them of 1 / (k + rank)), best
    first; a document that a ranking lacks gets nothing from it."""
    parts: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, document in enumerate(ranking, 1):
            parts.setdefault(document, []).append(1 / (k + rank))
    scores = {
        document: math.fsum(found) for document, found in parts.items()
    }  # exact: ranks that are changed about do tie
    return [(document, scores[document]) for document in order(scores)]


def interpolate(a: Mapping[str, float], b: Mapping[str, float], weight: float) -> dict[str, float]:
    """(1 - weight) * a + weight * b, the scores of each moved to 0 .. 1 (Lee 1997, "Analyses of multiple evidence combination"); a document
    that one lacks has 0 there. `weight` is to be chosen on other queries than those that it is measured on."""
    found: dict[str, float] = {}
    for scores, share in ((a, 1 - weight), (b, weight)):
        low, high = min(scores.values(), default=0), max(scores.values(), default=0)
        for document, score in scores.items():
            found[document] = found.get(document, 0.0) + share * (
                (score - low) / (high - low) if high > low else 1.0
            )
    return found


def order(scores: Mapping[str, float]) -> list[str]:
    """Documents, best first; those with one score by their ids."""
    return sorted(scores, key=lambda document: (-scores[document], document))
