"""Contenders of a benchmark, in turns."""

import json
import sys

import pytest

from benchmarks import turns

_CONTENDER = """
from benchmarks import turns
count = 0
def work():
    global count
    count += 1
    return dict(seconds={seconds} * count, count=count)
print('words that are no measurement')
turns.serve(work, first_loss=0.5)
"""


def _command(seconds: float) -> list[str]:
    return [sys.executable, '-c', _CONTENDER.format(seconds=seconds)]


def test_ratios_are_of_the_same_round(tmp_path):
    """Catches a first round that counts, and ratios of one contender's times to another's."""
    lines = turns.take_turns({'fast': _command(1), 'slow': _command(4)}, rounds=2)
    assert [(line['name'], line['count']) for line in lines] == [
        ('fast', 2),
        ('slow', 2),
        ('fast', 3),
        ('slow', 3),
    ]

    # The fast one is four times as fast in both rounds, though both get slower.
    rows = turns.table(lines, 'slow').splitlines()
    assert rows[1].split()[-4:] == ['4.00', '(4.00', 'to', '4.00)']

    # What is kept says on what it was measured, and is added to what was there.
    file = tmp_path / 'kept.jsonl'
    turns.keep(str(file), lines, shape='small')
    turns.keep(str(file), lines, shape='small')
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(kept) == 8 and {'device', 'threads', 'versions', 'command'} <= kept[0].keys()


def test_one_that_ends_early():
    """Catches a benchmark that waits for ever for a contender that has ended."""
    with pytest.raises(RuntimeError, match='broken ended with 3'):
        turns.take_turns({'broken': [sys.executable, '-c', 'exit(3)']}, rounds=1)
