"""What the loop costs: that the sum is that of its parts."""

import pytest

from benchmarks import loop


def test_parts_are_spread_over_the_steps_between_them():
    """Catches the cost of an evaluation that is taken for that of a step, and ratios of medians."""
    parts = dict(evaluation=4.0, checkpoint=2.0, written=9.0)
    lines = []
    for bare, seconds in ((1.0, 1.01), (2.0, 2.02), (4.0, 4.04)):
        lines += [
            dict(name=loop.BARE, seconds=bare),
            dict(name=loop.LOOP, seconds=seconds, **parts),
        ]
    costs = loop.costs(lines)
    assert costs['bare'] == 2.0
    assert costs['shares'] == pytest.approx(dict(loop=0.01, evaluation=0.01, checkpoint=0.005))
    assert costs['sum'] == pytest.approx(0.025)
