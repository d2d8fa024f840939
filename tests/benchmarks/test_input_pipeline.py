"""How fast the input is: that whole batches are counted, and the planning of the real rows."""

import pytest

from benchmarks import input_pipeline, turns
from data import batches


def test_what_a_turn_counts(tmp_path, monkeypatch):
    """Catches a turn that makes fewer batches than it is divided by, or others than its packing."""
    works = []
    asked = []
    monkeypatch.setattr(turns, 'serve', works.append)

    def note(rows, start, stop, ahead):
        asked.append(type(rows.packing).__name__)
        return map(rows, range(start, stop))

    monkeypatch.setattr(batches, 'prefetched', note)
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(input_pipeline.time, 'perf_counter', lambda: float(next(clock)))
    for packing in input_pipeline.PACKINGS:
        input_pipeline.serve(str(tmp_path), packing, 1, batches_a_turn=5, quick=True)
    assert [work()['seconds'] for work in works] == pytest.approx([2 / (5 * 512) * 1e6] * 2)
    assert asked == ['Stream', 'Whole']


def test_what_is_planned():
    """Catches rows that lack documents, by which planning would be fast."""
    planned = input_pipeline.plan(2000)
    assert planned['documents'] == 2000 and 0.95 < planned['filled'] <= 1
