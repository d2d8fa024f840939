"""Seeds together and one by one: that the measurement measures them."""

import pytest

from benchmarks import seeds
from configs.ablations import base


def test_both_ways_are_measured(monkeypatch):
    """Catches a benchmark that does not run any more, a ratio upside down, and a mean of rates that
    is not that of the tokens."""
    ran = []
    rate = {1: [1000, 3000], 2: [6000]}

    def run(model, config, batches, numbers):
        ran.append(list(numbers))
        return [(None, {'tokens_per_second': rate[len(numbers)][numbers[0] - 1]})] * len(numbers)

    monkeypatch.setattr(seeds.trial, 'run', run)
    found = seeds.measure(base.get_config(), 'rope', 'copy_same', 2, 8, 1)
    assert ran == [[1], [2], [1, 2]]
    assert found['tokens_per_second'] == {'alone': 1500, 'together': 6000} and found[
        'ratio'
    ] == pytest.approx(4)
    assert found['share_of_drawing'] > 0
