"""What each claim is made of: cells that are measured, and a finding made of their records."""

import dataclasses
import itertools
from collections.abc import Sequence


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
