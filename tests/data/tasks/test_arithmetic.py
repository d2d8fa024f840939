"""Answers of arithmetic, recomputed from the written prompt."""

import numpy as np
import pytest

from data.tasks import arithmetic


def examples(task, lengths, count=40):
    for length in lengths:
        for seed in range(count):
            yield length, task.sample(np.random.default_rng([seed, length]), length)


def test_summation():
    """Catches a sum of the wrong digits, one without the mod, digits of 0, and the wrong number of
    them."""
    for length, example in examples(arithmetic.Summation(), (1, 2, 7, 40)):
        digits = ''.join(example.prompt).split('+')
        assert len(digits) == length and all(d in list('123456789') for d in digits)
        place = 0
        for d in digits:
            for _ in range(int(d)):
                place = 0 if place == 9 else place + 1
        assert example.answer == [str(place)]


def test_polynomial():
    """Catches a remainder of the wrong sign, a lost minus, powers of the wrong base, and values out
    of their ranges."""
    seen = set()
    for length, example in examples(arithmetic.Polynomial(), (1, 2, 5, 20), 80):
        x, terms = ''.join(example.prompt).removeprefix('x=').split('in')
        value = 0
        for term in terms.split('+'):
            coefficient, degree = term.split('x^')
            seen |= {('c', int(coefficient)), ('d', int(degree)), ('x', int(x))}
            power = 1
            for _ in range(int(degree)):
                power *= int(x)
            value += int(coefficient) * power
        assert len(terms.split('+')) == length
        assert example.answer == [
            str(value)[-1] if value >= 0 else str(-value % 10 and 10 - -value % 10)
        ]
    assert seen == {
        *(('c', v) for v in range(-3, 4)),
        *(('d', v) for v in range(4)),
        *(('x', v) for v in range(-2, 3)),
    }


def test_parity():
    """Catches the parity of zeros, that of all bits but one, and a constant."""
    for length, example in examples(arithmetic.Parity(), (1, 2, 7, 40)):
        assert len(example.prompt) == length
        assert example.answer == [
            '1'
            if ''.join(example.prompt).replace('0', '') in {'1' * n for n in range(1, 50, 2)}
            else '0'
        ]


@pytest.mark.parametrize('permuted', [False, True])
def test_lego(permuted):
    """Catches a sign that is not carried along the chain, a question about its first half, and
    clauses in the wrong order."""
    in_order = 0
    asked = set()
    for length, example in examples(arithmetic.Lego(permuted=permuted), (2, 3, 6, 7, 26), 60):
        clauses, question = ''.join(example.prompt).split('?')
        clauses = [clause.split('=') for clause in clauses.split(',')]
        assert len(dict(clauses)) == len(clauses) == length
        values = {'1': 1}
        chain = []
        while len(chain) < length:  # solves what can be solved, until all is
            for name, right in clauses:
                if name not in values and right[1] in values:
                    values[name] = values[right[1]] * int(f'{right[0]}1')
                    chain.append(name)
        in_order += chain == [name for name, _ in clauses]
        place = chain.index(question)
        assert example.answer == ['+' if values[question] == 1 else '-'] and place >= length / 2
        asked.add((length, place))
    assert {p for n, p in asked if n == 7} == {4, 5, 6} and {p for n, p in asked if n == 6} == {
        3,
        4,
        5,
    }
    assert in_order < 150 if permuted else in_order == 300
