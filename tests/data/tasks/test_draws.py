"""Tasks draw as the code of their sources does: counted with fixed seeds."""

import collections
import itertools

import numpy as np
import pytest

from data.records import DataError
from data.tasks import TaskBatches, build, stated
from data.tasks.addition import LENGTHS, Addition
from data.tasks.memory import MultiQueryRecall

# What chi-square has with probability .001 at most, by degrees of freedom.
RARE = {3: 16.27, 4: 18.47, 8: 26.12, 9: 27.88, 10: 29.59, 11: 31.26, 15: 37.70}


def surprise(counts, probabilities):
    """Chi-square of counts, divided by the value that chance exceeds once in 1,000 times."""
    assert {*counts} <= {*probabilities}
    total = sum(counts.values())
    each = {place: total * p / sum(probabilities.values()) for place, p in probabilities.items()}
    assert min(each.values()) > 10
    deviation = sum((counts[place] - e) ** 2 / e for place, e in each.items())
    return deviation / RARE[len(probabilities) - 1]


def digits(example):
    plus = example.prompt.index('+')
    return plus, len(example.prompt) - plus - 1


def pairs_of_rows(task, low, high, count=3000):
    rows = (task.row(np.random.default_rng([5, i]), low, high) for i in range(count))
    return [collections.Counter(map(digits, examples)) for examples in zip(*rows)]


def pairs_of_test(task, length, low=1, count=3000):
    drawn = (task.tested(np.random.default_rng([6, i]), length, low) for i in range(count))
    return collections.Counter(map(digits, drawn))


@pytest.mark.parametrize('low, high', [(1, 4), (2, 4)])
@pytest.mark.parametrize('name', ['addition', 'addition_reversed', 'addition_all_reversed'])
def test_all_pairs_are_alike_in_training(name, low, high):
    """Catches the longer number drawn first, in either place of a row, pairs of one number, and
    digits below the range."""
    alike = dict.fromkeys(itertools.product(range(low, high + 1), repeat=2), 1)
    for counts in pairs_of_rows(build(name), low, high):
        assert surprise(counts, alike) < 1
    for counts in pairs_of_rows(Addition(lengths='longest'), low, high):
        assert any(pair not in alike for pair in counts) or surprise(counts, alike) > 1


def test_the_two_sums_of_a_row_are_apart():
    """Catches a second sum that follows from the first, as it does for tasks of one length."""
    rows = [Addition().row(np.random.default_rng([5, i]), 1, 2) for i in range(3000)]
    pairs = collections.Counter((digits(a)[0], digits(a)[1], *digits(b)) for a, b in rows)
    assert surprise(pairs, dict.fromkeys(itertools.product((1, 2), repeat=4), 1)) < 1


def test_the_test_of_each_source():
    """Catches a longer number of another length, pairs that are not alike, and the shorter number
    below the lengths of training."""
    kazemnejad = [(5, n) for n in range(1, 6)] + [(n, 5) for n in range(1, 5)]
    assert surprise(pairs_of_test(Addition(), 5), dict.fromkeys(kazemnejad, 1)) < 1
    assert {*pairs_of_test(Addition(), 5, low=4)} == {(5, 4), (5, 5), (4, 5)}
    assert {*pairs_of_test(Addition(), 3, low=4)} == {(3, 3)}
    assert {*pairs_of_test(build('addition_reversed'), 5)} == {(5, 5)}
    assert {*pairs_of_test(build('addition', dict(lengths='coupling')), 5)} == {(5, 5)}
    longest = {pair: 1 / 5 if pair == (5, 5) else 1 / 10 for pair in kazemnejad}
    assert surprise(pairs_of_test(Addition(lengths='longest'), 5), longest) < 1


def test_digits_are_uniform():
    """Catches a leading zero, a number of one digit that is never 0, and numbers below a bound."""
    prompts = [Addition().sample(np.random.default_rng([7, i]), 2).prompt for i in range(3000)]
    numbers = [n for p in prompts for n in ''.join(p).split('+')]
    first = collections.Counter(n[0] for n in numbers if len(n) == 2)
    last = collections.Counter(n[-1] for n in numbers)
    assert surprise(first, dict.fromkeys('123456789', 1)) < 1
    assert surprise(last, dict.fromkeys('0123456789', 1)) < 1


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('lengths', LENGTHS)
def test_rows_hold_what_is_drawn(lengths, padded):
    """Catches a row too short for two of the longest sums, and one with room that no sums fill."""
    task = Addition(lengths=lengths, padded=padded, form='reversed')
    batches = TaskBatches(task, (1, 3), 256, 0, scheme='coupling')
    used = (batches(0)['segment_ids'] > 0).sum(1)
    assert used.max() in (batches.seq_len, batches.seq_len - 1)
    assert batches.test(4, 8)['tokens'].shape[1] == task.size(4) + 2


def test_what_names_of_results_state():
    """Catches an old result that passes for what the default is now, and one that has to be made
    again though it means the same."""
    assert stated('addition', dict(lengths='longest')) == {}
    assert stated('addition', {}) == {'lengths': 'kazemnejad'}
    assert stated('addition_reversed', dict(padded=True)) == {'padded': True, 'lengths': 'coupling'}
    assert stated('addition', dict(equal=True)) == {'equal': True}
    assert stated('multi_query_recall', dict(words=64)) == {'words': 64, 'keys': 'zoology'}
    assert stated('multi_query_recall', dict(keys='all', tokens=64)) == {'tokens': 64}
    assert stated('copy', dict(words=9)) == {'words': 9}


@pytest.mark.parametrize(
    'arguments, sizes',
    [(dict(tokens=64), {4: 64, 16: 64}), (dict(pairs=4), {16: 16, 65: 65}), ({}, {4: 32, 16: 128})],
)
def test_pairs_and_symbols_are_free(arguments, sizes):
    """Catches a length that is tied to the pairs, or pairs that have another number."""
    task = build('multi_query_recall', dict(words=64, **arguments))
    for length, size in sizes.items():
        example = task.sample(np.random.default_rng(0), length)
        pairs = arguments.get('pairs', length)
        assert len(example.prompt) == size == task.size(length) and len(example.asked) == pairs
        keys = example.prompt[: 2 * pairs : 2]
        values = example.prompt[1 : 2 * pairs : 2]
        asked = [(example.prompt[i - 1], example.prompt[i]) for i in example.asked]
        assert (
            sorted(asked) == sorted(zip(keys, values)) and len({*keys}) == len({*values}) == pairs
        )
        assert min(example.asked) > 2 * pairs and {i % 2 for i in example.asked} == {1}


def test_keys_values_and_gaps_are_the_sources():
    """Catches key 0 in use or out of the noise, a value left out, and gaps of another power."""
    task = MultiQueryRecall(words=10, tokens=24)
    drawn = [task.sample(np.random.default_rng([8, i]), 1) for i in range(4000)]
    keys = collections.Counter(e.prompt[0] for e in drawn)
    values = collections.Counter(e.prompt[1] for e in drawn)
    gaps = collections.Counter((e.asked[0] - 3) // 2 for e in drawn)
    noise = collections.Counter(e.prompt[2 if e.asked[0] > 3 else -1] for e in drawn)
    assert surprise(keys, {f'k{i}': 1 for i in range(1, 5)}) < 1
    assert surprise(values, {f'v{i}': 1 for i in range(5)}) < 1
    assert surprise(gaps, {n: (n + 1) ** (0.01 - 1) for n in range(11)}) < 1
    assert surprise(noise, dict.fromkeys(task.symbols, 1)) < 1
    every = MultiQueryRecall(words=10, tokens=24, keys='all')
    drawn = [every.sample(np.random.default_rng([8, i]), 1).prompt[0] for i in range(100)]
    assert {*drawn} == {f'k{i}' for i in range(5)}


def test_the_steepest_power():
    """Catches weights of the longest text that overflow within the powers that are taken."""
    task = build('multi_query_recall', dict(tokens=2**20, power=32.0))
    example = task.sample(np.random.default_rng(0), 100)
    assert len(example.asked) == 100 and min(example.asked) > 2**19


@pytest.mark.parametrize(
    'make, message',
    [
        (
            lambda: build('addition', dict(lengths='longer')),
            "task_args.lengths is 'longer': expected one of kazemnejad, coupling, longest",
        ),
        (
            lambda: build('multi_query_recall', dict(tokens=64, pairs=4)),
            'task_args.tokens is 64 and task_args.pairs 4: expected 0 for one of them',
        ),
        (
            lambda: build('multi_query_recall', dict(power=300.0)),
            'task_args.power is 300.0: expected more than 0, and at most 32',
        ),
        (
            lambda: TaskBatches(build('multi_query_recall', dict(tokens=64)), (1, 17), 1, 0),
            'task_args.tokens is 64: expected 4 symbols or more for each pair, found 64 for 17',
        ),
        (
            lambda: TaskBatches(build('multi_query_recall', dict(pairs=4)), (15, 20), 1, 0),
            'lengths are 15 to 20: MultiQueryRecall needs at least 16',
        ),
    ],
)
def test_mistakes(make, message):
    """Catches a source's name that is taken for a default, and lengths without room for pairs."""
    with pytest.raises(DataError, match=message):
        make()
