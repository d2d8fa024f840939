"""What each claim is made of: cells that are measured, and a finding made of their records."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from evals.statistics import Contrast, contrast


@dataclasses.dataclass(frozen=True)
class ClaimCell:
    """One measurement: an arm (a way to train or to measure) and a seed.

    Attributes:
      group: cells of one group share runs; one process measures them one after the other.
    """

    arm: str
    seed: int
    group: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the records of a claim say.

    Attributes:
      sentence: what was found, with its interval.
      shown: whether the claim holds and its control fails where it should.
      lines: of the page, in Markdown: tables, and what they mean.
      picture: caption and SVG that the page opens with.
      more: captions and SVG of further pictures.
    """

    sentence: str
    shown: bool
    lines: list[str]
    picture: tuple[str, str]
    more: tuple[tuple[str, str], ...] = ()


def by_arm(records: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns the records of each arm, by seed."""
    ordered = sorted(records, key=lambda r: (r['arm'], r['seed']))
    return {arm: list(of_arm) for arm, of_arm in itertools.groupby(ordered, lambda r: r['arm'])}


def paired(values: Sequence[float], others: Sequence[float]) -> Contrast:
    """Returns the mean of values less others, seed by seed, with its interval."""
    return contrast([[[a - b for a, b in zip(values, others)]]])


def interval(values: Sequence[float]) -> list[float]:
    """Returns the mean of values of seeds, and its interval; of one value, that alone."""
    found = contrast([[values]])
    bounds = [found.low, found.high] if np.isfinite(found.low) else [found.mean] * 2
    return [found.mean, *bounds]


def show_interval(values: Sequence[float], form: str = '.1f') -> str:
    """Returns the mean of values of seeds, with its interval, for a table."""
    mean, low, high = interval(values)
    return f'{mean:{form}} ({low:{form}} to {high:{form}})'


def span(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean of values of seeds, the least and the greatest."""
    return float(np.mean(values)), min(values), max(values)


def show_span(values: Sequence[float], form: str = '.1f') -> str:
    """Returns the mean of values of seeds, the least and the greatest, for a table."""
    mean, least, most = span(values)
    return f'{mean:{form}} ({least:{form}} to {most:{form}})'
