"""What the benchmark of attention kernels tells, whatever the times are."""

import types

from benchmarks import kernels


def test_every_pair_is_measured_or_refused():
    """Catches a pair that is left out without a word, and a ratio to something else than the
    reference with the same encoding."""
    f = types.SimpleNamespace(width=16, layers=1, heads=2, rows=1, length=16, steps=1, rounds=1)
    found = {
        row['encoding']: row for row in kernels.measure(f, ['none', 'cope'], ['reference', 'xla'])
    }
    assert (
        'CoPE changes the logits' in found['cope']['refused']['xla']
        and not found['none']['refused']
    )
    assert found['cope']['reference']['ratio'] == found['none']['reference']['ratio'] == 1
    none = found['none']
    assert 0 < found['cope']['reference']['of_none'] and 'xla' not in found['cope']
    assert (
        max(none[k]['of_none'] for k in ('reference', 'xla')) == 1
        and 'reference' in none['auto'][0]
    )
    expected = none['reference']['milliseconds'] / none['xla']['milliseconds']
    assert abs(none['xla']['ratio'] / expected - 1) < 1e-6
