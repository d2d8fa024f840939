"""Packing as arithmetic: properties over random documents, against a slow walk through them."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from ml_collections import ConfigDict

from data.batches import FIELDS, Batches, best_fit, prefetched
from data.records import DataError
from data.store import Split

WORLDS = st.fixed_dictionaries(
    dict(
        lengths=st.lists(st.integers(1, 20) | st.integers(1, 99), min_size=1, max_size=25),
        seq_len=st.integers(1, 24),
        batch_size=st.integers(1, 5),
        seed=st.integers(0, 3),
        packing=st.sampled_from(['stream', 'whole']),
        answered=st.booleans(),
    )
)


def build(lengths, seq_len, batch_size, seed, packing, answered, shuffle=True):
    """Documents whose tokens are all different, so that each can be recognised wherever it turns
    up."""
    offsets = np.cumsum([0, *lengths])
    split = Split(
        np.arange(1, offsets[-1] + 1),
        offsets,
        (np.arange(offsets[-1]) % 3).astype(np.uint8) if answered else None,
        int(offsets[-1]),
    )
    config = ConfigDict(
        dict(seq_len=seq_len, batch_size=batch_size, packing=packing, on_broken='skip')
    )
    return split, Batches(split, config, seed, shuffle)


def fits(world):
    return world['packing'] == 'stream' or min(world['lengths']) <= world['seq_len']


def epoch_rows(batches, epoch):
    out = {n: np.zeros((batches.rows_per_epoch, batches.seq_len), d) for n, d in FIELDS.items()}
    batches.packing.fill(epoch, np.arange(batches.rows_per_epoch), out)
    return out


@settings(deadline=None, max_examples=120)
@given(WORLDS)
def test_an_epoch(world):
    """Catches tokens lost, repeated or crossing documents, positions that do not restart, and
    targets of another document."""
    if not fits(world):
        return
    split, batches = build(**world)
    keeps = [
        w
        for w in range(len(split.lengths))
        if world['packing'] == 'stream' or split.lengths[w] <= world['seq_len']
    ]
    expected = sorted(t for d in keeps for t in split.document(d))
    document_of = np.repeat(np.arange(len(split.lengths)), split.lengths)
    for epoch in (0, 1):
        rows = epoch_rows(batches, epoch)
        assert sorted(rows['tokens'][rows['segment_ids'] > 0]) == expected
        targets = 0
        for tokens, target, weight, segment, position in zip(*(rows[n] for n in FIELDS)):
            seen = set()
            for i in range(len(tokens)):
                if not segment[i]:
                    assert tokens[i] == target[i] == weight[i] == position[i] == 0
                    continue
                begins = i == 0 or segment[i] != segment[i - 1]
                document = document_of[tokens[i] - 1]
                assert (document in seen) != begins  # one document, one segment, in one piece
                seen.add(document)
                assert position[i] == (0 if begins else position[i - 1] + 1)
                assert begins or tokens[i] == tokens[i - 1] + 1
                last = tokens[i] == split.offsets[document + 1]
                assert target[i] == (0 if last else tokens[i] + 1)
                assert weight[i] == (not last and (not world['answered'] or tokens[i] % 3 > 0))
                targets += not last
            assert segment[0] <= 1 and set(np.diff(segment[segment > 0])) <= {0, 1}
        assert targets == len(expected) - len(
            keeps
        )  # each token but a document's first is a target once


@settings(deadline=None, max_examples=60)
@given(WORLDS, st.integers(0, 40), st.integers(0, 5))
def test_a_batch_is_a_function_of_the_step(world, step, cut):
    """Catches iterator state, and a host that sees other rows than its own."""
    if not fits(world):
        return
    _, batches = build(**world)
    whole = batches(step)
    cut = min(cut, world['batch_size'])
    batches(step + 7)
    _, again = build(**world)
    first = again(step, slice(0, cut))
    second = again(step, slice(cut, None))
    for name, dtype in FIELDS.items():
        assert whole[name].dtype == dtype and whole[name].shape == (
            world['batch_size'],
            world['seq_len'],
        )
        np.testing.assert_array_equal(whole[name], np.concatenate([first[name], second[name]]))


@pytest.mark.parametrize('packing', ['stream', 'whole'])
def test_epochs_are_shuffled_anew_and_seeds_differ(packing):
    """Catches one order for all epochs, and a seed that is not used."""
    orders = [
        epoch_rows(build([5] * 30, 10, 4, seed, packing, False)[1], epoch)['tokens'].tobytes()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_a_single_long_document_is_cut_elsewhere_in_each_epoch():
    """Catches a corpus of one file that always shows the same windows, or shows them in the order
    of the text."""
    _, batches = build([500], 10, 4, 0, 'stream', False)
    assert np.abs(np.diff(epoch_rows(batches, 0)['tokens'][:, 5])).mean() > 50
    starts = {tuple(sorted(epoch_rows(batches, e)['tokens'][:, 5])) for e in range(4)}
    assert len(starts) > 1


@pytest.mark.parametrize('packing', ['stream', 'whole'])
def test_evaluation_sees_each_token_once(packing):
    """Catches a last batch that wraps around, shuffled evaluation, and a process that evaluates
    other rows than its own."""
    split, batches = build([5, 9, 7, 3, 8], 10, 3, 0, packing, False, shuffle=False)
    seen = [t for b in batches.once() for t in b['tokens'][b['segment_ids'] > 0]]
    assert sorted(seen) == list(range(1, 33))
    assert packing == 'whole' or seen == sorted(seen)
    assert len(list(batches.once(limit=1))) == 1
    for whole, part in zip(batches.once(), batches.once(rows=slice(1, 3)), strict=True):
        assert all(np.array_equal(whole[k][1:3], part[k]) for k in whole)


@pytest.mark.parametrize('ahead', [0, 3])
def test_prefetched_batches_come_in_order(ahead):
    """Catches a background thread that reorders or drops batches."""
    _, batches = build([5] * 30, 10, 4, 0, 'stream', False)
    got = list(prefetched(batches, 3, 9, ahead))
    assert len(got) == 6
    for step, batch in enumerate(got, 3):
        np.testing.assert_array_equal(batch['tokens'], batches(step)['tokens'])


@settings(deadline=None, max_examples=40)
@given(WORLDS)
def test_batches_are_the_epochs_one_after_the_other(world):
    """Catches rows skipped or repeated between batches, and a batch that stops where an epoch
    ends."""
    if not fits(world):
        return
    _, batches = build(**world)
    steps = -(-2 * batches.rows_per_epoch // world['batch_size'])
    dealt = np.concatenate([batches(step)['tokens'] for step in range(steps)])[
        : 2 * batches.rows_per_epoch
    ]
    np.testing.assert_array_equal(
        dealt, np.concatenate([epoch_rows(batches, epoch)['tokens'] for epoch in (0, 1)])
    )


@pytest.mark.parametrize('packing', ['stream', 'whole'])
def test_hosts_share_no_token(packing):
    """Catches two hosts that train on the same rows: within an epoch their tokens are disjoint."""
    _, batches = build([5] * 40, 10, 4, 0, packing, False)
    steps = range(batches.rows_per_epoch // 4)
    seen = [
        {t for s in steps for t in batches(s, rows)['tokens'].ravel() if t}
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert seen[0] and seen[1] and not seen[0] & seen[1]


@pytest.mark.parametrize('packing', ['stream', 'whole'])
def test_less_than_a_row(packing):
    """Catches a small store that fails, or that fills a row by repetition; evaluation pads with
    weight 0."""
    _, batches = build([3, 4], 32, 4, 0, packing, False)
    shown = [row[row > 0].tolist() for row in batches(0)['tokens']]
    assert any(shown) and all(len(set(row)) == len(row) for row in shown)
    evaluation = build([3, 4], 32, 4, 0, packing, False, shuffle=False)[1]
    [batch] = evaluation.once()
    assert batch['tokens'].shape == (4, 32) and batch['loss_weights'].sum() == 5
    assert sorted(batch['tokens'][0][:7]) == list(range(1, 8)) and not any(
        batch[name][1:].any() for name in FIELDS
    )


@pytest.mark.parametrize(
    'lengths, packing, message',
    [
        ([5], 'best', "config.data.packing is 'best': expected 'stream' or 'whole'"),
        ([], 'stream', 'no tokens in this split'),
        ([30, 31], 'whole', '2 documents are longer than a row .* has 31 tokens'),
    ],
)
def test_mistakes(lengths, packing, message):
    """Catches a traceback where nothing can be packed."""
    with pytest.raises(DataError, match=message):
        build(lengths, 10, 2, 0, packing, False)


def test_documents_that_do_not_fit():
    """Catches long documents dropped silently, or cut in whole packing."""
    _, batches = build([5, 30, 6], 10, 2, 0, 'whole', False)
    assert batches.dropped == 1
    config = ConfigDict(dict(seq_len=10, batch_size=2, packing='whole', on_broken='fatal'))
    with pytest.raises(
        DataError,
        match=r'1 documents are longer than a row \(config.data.seq_len is 10\), '
        'the longest has 30',
    ):
        Batches(build([5, 30, 6], 10, 2, 0, 'stream', False)[0], config, 0)


def walk_best_fit(lengths, size):
    """The rule as it reads, a document at a time: the rows, each a list of documents."""
    rooms: list[int] = []
    newest: dict[int, list[int]] = {}  # free places -> rows that got them, the last one last
    rows: list[list[int]] = []
    for number, length in enumerate(lengths):
        fitting = [room for room, of_room in newest.items() if of_room and room >= length]
        if fitting:
            row = newest[min(fitting)].pop()
        else:
            row = len(rows)
            rows.append([])
            rooms.append(size)
        rows[row].append(number)
        rooms[row] -= length
        newest.setdefault(rooms[row], []).append(row)
    return rows


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 40), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80))
def test_rows_are_planned_by_best_fit(size, lengths):
    """Catches rows that are others than before: those of runs that are resumed would change."""
    lengths = sorted((min(length, size) for length in lengths), reverse=True)
    row_of = best_fit(np.asarray(lengths), size)
    expected = walk_best_fit(lengths, size)
    assert [np.flatnonzero(row_of == row).tolist() for row in range(max(row_of) + 1)] == expected
