"""Fusion of rankings, against figures computed by hand."""

import pytest

from data import fusion


def test_fusion_by_hand():
    """Catches ranks from 0, a missing document that is punished or that gets a last rank, and ties
    in the order of the lists."""
    ranking = fusion.fuse([['b', 'a', 'c'], ['a', 'b', 'd']])
    assert [d for d, _ in ranking] == ['a', 'b', 'c', 'd']  # a and b have 1/61 + 1/62, c and d 1/63
    assert [s for _, s in ranking] == pytest.approx([1 / 61 + 1 / 62] * 2 + [1 / 63] * 2)
    assert fusion.fuse([['x', 'y'], ['y']], k=0) == [('y', 1.5), ('x', 1.0)]
    three = [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'a', 'b']]  # one sum in three orders
    assert [d for d, _ in fusion.fuse(three)] == ['a', 'b', 'c'] and len(
        {s for _, s in fusion.fuse(three)}
    ) == 1
