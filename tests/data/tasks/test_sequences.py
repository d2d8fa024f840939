"""Copying, reversing, sorting, addition; batches of tasks; the registry."""

import importlib
import pathlib

import numpy as np
import pytest

from data.records import DataError
from data.tasks import REGISTRY, Task, TaskBatches, base, build
from data.tasks.addition import Addition


def examples(name, lengths=range(1, 9), count=5, **arguments):
    task = build(name, arguments)
    return [
        (n, task, task.sample(np.random.default_rng([n, i]), n))
        for n in lengths
        for i in range(count)
    ]


def test_every_task_has_a_name():
    """Catches a family that the registry forgets, and a name that does not build."""
    for path in pathlib.Path('data/tasks').glob('*.py'):
        importlib.import_module(f'data.tasks.{path.stem}')

    def leaves(kind):
        return set().union(*(leaves(k) for k in kind.__subclasses__())) or {kind}

    assert {kind for kind, _ in REGISTRY.values()} == leaves(Task)
    assert all(isinstance(build(name), Task) for name in REGISTRY)


@pytest.mark.parametrize(
    'name, expected',
    [
        ('copy', lambda p: p),
        ('copy_twice', lambda p: [*p, '<next>', *p]),
        ('copy_same', lambda p: p),
        ('copy_same_twice', lambda p: p + p),
        ('copy_replaced', lambda p: [p[2]] * (len(p) - 4)),
        ('reverse', lambda p: p[::-1]),
        ('reverse_twice', lambda p: [*p[::-1], '<next>', *p[::-1]]),
        ('reverse_copy', lambda p: [*p[::-1], '<next>', *p]),
        ('sort', lambda p: sorted(p, key=lambda w: int(w[1:]))),
    ],
)
def test_words(name, expected):
    """Catches an answer in another order, a lost <next>, and a replaced word that is the other
    one."""
    for n, task, e in examples(name):
        assert e.answer == expected(e.prompt) and len(e.prompt) + len(e.answer) == task.size(n)
        assert len(set(e.prompt)) == 1 if 'same' in name else True
    assert all(
        e.prompt[0] != e.prompt[2] and set(e.prompt[4:]) == {e.prompt[0]}
        for _, _, e in examples('copy_replaced')
    )


def number(symbols, units_first=False):
    return int(''.join(symbols[::-1] if units_first else symbols))


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('addition', {}),
        ('addition', dict(padded=True, equal=True)),
        ('addition_reversed', {}),
        ('addition_reversed', dict(padded=True)),
        ('addition_all_reversed', {}),
    ],
)
def test_addition(name, arguments):
    """Catches a lost carry, digits in the wrong order, and operands shorter than the length
    says."""
    for n, task, e in examples(name, **arguments):
        plus = e.prompt.index('+')
        whole = name == 'addition_all_reversed'
        a = e.prompt[:plus]
        b = e.prompt[plus + 1 :]
        assert number(e.answer, name != 'addition') == number(a, whole) + number(b, whole)
        assert max(len(a), len(b)) == n and len(e.prompt) + len(e.answer) <= task.size(n)
        if arguments.get('padded'):
            assert len(a) == len(b) == n and len(e.answer) == n + 1


def test_hints_and_scratchpad():
    """Catches a hint of another digit's place, and steps whose carry or digit is wrong."""
    for n, _, e in examples('addition_hints'):
        plus = e.prompt.index('+')
        for part, falling in (
            (e.prompt[:plus], True),
            (e.prompt[plus + 1 :], True),
            (e.answer, False),
        ):
            places = [int(h[1:]) for h in part[::2]]
            assert places == sorted(range(len(part) // 2), reverse=falling)
    for n, _, e in examples('addition_scratchpad'):
        text = ''.join(e.answer)
        steps = text[: text.rindex(';')].split(';')
        total = text[text.rindex(';') + 2 :]
        carry = 0
        for place, step in enumerate(steps):
            carry, digit = divmod(int(step[0]) + int(step[1]) + carry, 10)
            assert step[3:] == f'{carry}{digit}' and total[place] == str(digit)


def test_batches_are_functions_of_the_step():
    """Catches examples that depend on what was asked before, rows of another host, weights off the
    answer, and a test that is drawn from the training stream."""
    batches = TaskBatches(build('reverse'), (2, 6), 4, seed=3)
    first = batches(5)
    batches(9)
    again = TaskBatches(build('reverse'), (2, 6), 4, seed=3)
    for name, x in again(5, slice(1, 3)).items():
        np.testing.assert_array_equal(x, first[name][1:3])
    assert not np.array_equal(first['tokens'], batches(6)['tokens']) and batches.hash == again.hash
    assert batches.hash != TaskBatches(build('reverse'), (2, 6), 4, seed=4).hash
    for row in range(4):
        lengths = []
        for segment in (1, 2):
            of = {k: x[row][first['segment_ids'][row] == segment] for k, x in first.items()}
            tokens = [*of['tokens'], of['targets'][-1]]
            sep = int(np.flatnonzero(of['tokens'] == base.SEP)[0])
            assert (
                tokens[0] == base.BOS
                and tokens[-1] == base.EOS
                and of['positions'].tolist() == list(range(len(of['tokens'])))
            )
            assert tokens[sep + 1 : -1] == tokens[1:sep][::-1] and np.flatnonzero(
                of['loss_weights']
            ).tolist() == list(range(sep, len(of['tokens'])))
            lengths.append(sep - 1)
        assert sum(lengths) == 8 and min(lengths) >= 2
    assert first['tokens'].shape[1] == batches.seq_len == 8 * 2 + 6 - 1
    test = batches.test(7, 3)
    assert (test['segment_ids'] == 1).all() and test['tokens'].shape == (3, 16)


def test_task_given_ids_lie_on_their_tokens():
    """Catches ids shifted by one against the tokens: '+' has 1, and digits of one significance
    share theirs."""
    batches = TaskBatches(Addition(form='reversed', padded=True), (3, 3), 2, 0, scheme='coupling')
    batch = batches(0)
    symbols = {i: s for s, i in batches.task.vocabulary.items()}
    first = batch['segment_ids'][0] == 1
    words = [symbols[t] for t in batch['tokens'][0][first]]
    assert [w for w, i in zip(words, batch['ids'][0][first]) if i == 1] == ['+', '<sep>']
    assert batch['ids'][0][first].tolist() == [0, 4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: build('revers'), "no task 'revers'; did you mean 'reverse'"),
        (
            lambda: build('copy', dict(word=3)),
            'task_args.word=3 of copy: expected one of kind, twice, words',
        ),
        (lambda: build('copy', dict(words='x')), "task_args.words='x' of copy: expected int"),
        (lambda: build('copy', dict(kind='all')), "task_args.kind is 'all'"),
        (lambda: build('copy_replaced', dict(twice=True)), 'task_args.twice is True'),
        (lambda: build('addition', dict(form='long')), "task_args.form is 'long'"),
        (lambda: TaskBatches(build('copy'), (5, 3), 2, 0), 'lengths are 5 to 3'),
        (
            lambda: TaskBatches(build('copy'), (1, 3), 2, 0, scheme='abacus'),
            "Copy gives no 'abacus' ids",
        ),
    ],
)
def test_mistakes(make, message):
    """Catches a mistyped name that is taken for a default."""
    with pytest.raises(DataError, match=message):
        make()
