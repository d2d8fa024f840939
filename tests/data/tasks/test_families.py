"""What all task families keep: their alphabet, their sizes, and the answers' chance level."""

import collections

import numpy as np
import pytest

from data.records import DataError
from data.tasks import arithmetic, chomsky, grammars, memory
from data.tasks.base import SPECIAL, TaskBatches

TASKS = [
    arithmetic.Summation(),
    arithmetic.Polynomial(),
    arithmetic.Parity(),
    arithmetic.Lego(),
    arithmetic.Lego(permuted=True),
    grammars.Scan(),
    grammars.Pcfg(),
    grammars.Pcfg(letters=2, longest=10),
    memory.FlipFlop(),
    memory.FlipFlop(ignore=0.0),
    memory.FlipFlop(ignore=1.0),
    memory.SelectiveCopy(),
    memory.SelectiveCopy(memorised=3, words=2),
    memory.InductionHead(),
    memory.InductionHead(words=2),
    memory.MultiQueryRecall(words=64),
    memory.MultiQueryRecall(words=64, spread=4),
    memory.MultiQueryRecall(words=52, tokens=104, keys='all'),
    memory.MultiQueryRecall(words=64, pairs=1),
    memory.IndirectIndexing(),
    memory.Passkey(),
    memory.Passkey(depth=0.5, digits=1),
    memory.Counting(),
    memory.Counting(variables=1),
    chomsky.EvenPairs(),
    chomsky.ParityCheck(),
    chomsky.CycleNavigation(),
    chomsky.ModularArithmetic(),
    chomsky.ModularArithmetic(modulus=10),
    chomsky.ModularArithmeticBrackets(),
    chomsky.ModularArithmeticBrackets(products=False),
    chomsky.SolveEquation(),
    chomsky.SolveEquation(modulus=2),
    chomsky.StackManipulation(),
    chomsky.ReverseString(),
    chomsky.ReverseString(vocab_size=12),
    chomsky.DuplicateString(),
    chomsky.MissingDuplicateString(),
    chomsky.OddsFirst(),
    chomsky.BucketSort(),
    chomsky.BucketSort(vocab_size=12),
    chomsky.BinaryAddition(),
    chomsky.BinaryMultiplication(),
    chomsky.ComputeSqrt(),
]
WRONG = [
    (grammars.Pcfg, dict(letters=1)),
    (grammars.Pcfg, dict(longest=9)),
    (memory.FlipFlop, dict(ignore=1.1)),
    (memory.SelectiveCopy, dict(memorised=0)),
    (memory.SelectiveCopy, dict(words=1)),
    (memory.InductionHead, dict(words=1)),
    (memory.MultiQueryRecall, dict(words=3)),
    (memory.MultiQueryRecall, dict(keys='some')),
    (memory.MultiQueryRecall, dict(tokens=-1)),
    (memory.MultiQueryRecall, dict(pairs=-1)),
    (memory.MultiQueryRecall, dict(spread=3)),
    (memory.MultiQueryRecall, dict(power=0.0)),
    (memory.Passkey, dict(depth=1.5)),
    (memory.Passkey, dict(depth=-0.5)),
    (memory.Passkey, dict(digits=0)),
    (memory.Counting, dict(variables=0)),
    (memory.Counting, dict(variables=27)),
    (chomsky.ReverseString, dict(vocab_size=1)),
    (chomsky.ModularArithmetic, dict(modulus=11)),
    (chomsky.SolveEquation, dict(modulus=1)),
]
# Task, length, the largest share of answers that may begin with the likeliest symbol, and the least
# share that must begin with the least likely one.
BALANCED = [
    (arithmetic.Summation(), 12, 0.13, 0.07),
    (arithmetic.Polynomial(), 12, 0.15, 0.06),
    (arithmetic.Parity(), 12, 0.54, 0.46),
    (arithmetic.Lego(permuted=True), 12, 0.54, 0.46),
    (memory.FlipFlop(), 12, 0.54, 0.46),
    (memory.InductionHead(), 12, 0.09, 0.04),
    (memory.IndirectIndexing(), 12, 0.04, 0.005),
    (memory.Passkey(), 12, 0.13, 0.07),
    (memory.Counting(), 64, 0.25, 0.01),
    (chomsky.EvenPairs(), 12, 0.54, 0.46),
    (chomsky.ParityCheck(), 12, 0.54, 0.46),
    (chomsky.CycleNavigation(), 12, 0.24, 0.16),
    (chomsky.ModularArithmetic(), 12, 0.24, 0.16),
    (chomsky.ModularArithmeticBrackets(), 12, 0.31, 0.15),
    (chomsky.SolveEquation(), 12, 0.24, 0.16),
    (chomsky.MissingDuplicateString(), 12, 0.54, 0.46),
]


def name(task):
    return repr(task) if not isinstance(task, (tuple, dict, float, int)) else str(task)


def draws(task, length, count, seed=0):
    return [task.sample(np.random.default_rng([seed, i, length]), length) for i in range(count)]


def lengths(task):
    return [n for n in (1, 2, 3, 4, 5, 6, 9, 16, 23, 26) if n >= task.shortest]


@pytest.mark.parametrize('task', TASKS, ids=name)
def test_alphabet_and_size(task):
    """Catches symbols beside the alphabet, an alphabet with doubles, a size that is exceeded, and a
    size of any large number."""
    task.check()
    assert len(set(task.symbols)) == len(task.symbols) and not set(task.symbols) & set(SPECIAL)
    assert task.source and task.length
    for length in lengths(task):
        for example in draws(task, length, 25):
            assert {*example.prompt, *example.answer} <= {*task.symbols}
            assert len(example.prompt) + len(example.answer) <= task.size(length)
            tokens, answer = task.encoded(example)
            assert (
                len(tokens) == len(example.prompt) + len(example.answer) + 3
                and tokens[answer - 1] == 2
            )
    short = {chomsky.BinaryMultiplication: 5}.get(
        type(task), task.shortest
    )  # documented: not before
    reached = {grammars.Pcfg(): [1], grammars.Pcfg(letters=2, longest=10): []}.get(
        task, [short, short + 1]
    )
    for length in reached:
        assert max(len(e.prompt) + len(e.answer) for e in draws(task, length, 400)) == task.size(
            length
        )


@pytest.mark.parametrize('task', TASKS, ids=name)
def test_an_example_is_of_its_generator(task):
    """Catches a draw from another source of chance (and a constant example)."""
    for length in (9, 16):
        assert draws(task, length, 10) == draws(task, length, 10)
        assert len({str(e) for e in draws(task, length, 10)}) > 1
    assert draws(task, 9, 10) != draws(task, 9, 10, seed=1)


@pytest.mark.parametrize('task', TASKS, ids=name)
def test_batches(task):
    """Catches lengths within a range that the batches cannot fill, a size that is too small for
    them among others."""
    batches = TaskBatches(task, (max(task.shortest, 3), 9), 4, 0)
    batch = batches(0)
    assert (
        batch['tokens'].shape == (4, batches.seq_len) and (batch['segment_ids'] == 2).any(1).all()
    )
    assert (batches.test(9, 2)['loss_weights'].sum(1) >= 1).all()


@pytest.mark.parametrize('task, length, most, least', BALANCED, ids=name)
def test_chance_level(task, length, most, least):
    """Catches answers that are nearly always the same, so that a constant guess scores well; bounds
    are 4 deviations and more."""
    counts = collections.Counter(
        (e.answer or [e.prompt[e.asked[-1]]])[0] for e in draws(task, length, 3000)
    )
    assert max(counts.values()) <= most * 3000 and min(counts.values()) >= least * 3000


@pytest.mark.parametrize('kind, arguments', WRONG, ids=name)
def test_parameters_without_a_valid_value(kind, arguments):
    """Catches a check that lets all pass, and a message that does not name the parameter and what
    was found."""
    with pytest.raises(DataError) as refusal:
        kind(**arguments).check()
    ((key, value),) = arguments.items()
    assert (
        f'task_args.{key}' in str(refusal.value)
        and str(value) in str(refusal.value)
        and 'expected' in str(refusal.value)
    )


@pytest.mark.parametrize(
    'task, length',
    [
        (arithmetic.Lego(), 27),
        (memory.MultiQueryRecall(words=64, keys='all'), 33),
        (memory.MultiQueryRecall(words=64), 32),
        (memory.MultiQueryRecall(words=64, tokens=20), 6),
        (grammars.Scan(), 49),
    ],
    ids=name,
)
def test_lengths_that_cannot_be(task, length):
    """Catches a shorter example in place of one that cannot be made."""
    with pytest.raises(DataError, match=str(length)):
        task.sample(np.random.default_rng(0), length)
    task.sample(np.random.default_rng(0), length - 1)
