"""The 15 tasks of Deletang et al., each answered once more by another rule than the generator's."""

import fractions
import re

import numpy as np
import pytest

from data.tasks import chomsky


def examples(task, lengths=(1, 2, 3, 4, 5, 8, 13, 40), count=30):
    for length in lengths:
        if length >= task.shortest:
            for seed in range(count):
                yield length, task.sample(np.random.default_rng([seed, length]), length)


def even_pairs(text):
    return str(int(text[0] != text[-1]))  # changes come and go


def parity_check(text):
    return '1' if re.fullmatch('0*1(0*10*1)*0*', text) else '0'


def reverse_string(text):
    return re.sub('(.)(.*)', lambda m: reverse_string(m[2]) + m[1], text) if text else ''


def odds_first(text):
    return ''.join(c for i, c in enumerate(text, 1) if i % 2) + ''.join(
        c for i, c in enumerate(text, 1) if not i % 2
    )


def bucket_sort(text):
    return ''.join(d * text.count(d) for d in '0123456789')


def duplicate_string(text):
    return text + text


def missing_duplicate(text):
    text = text.removesuffix('#')
    assert text.count('?') == 1 and '#' not in text
    half = len(text) // 2
    candidates = [c for c in '01' if text.replace('?', c)[:half] == text.replace('?', c)[half:]]
    assert len(candidates) == 1
    return candidates[0]


@pytest.mark.parametrize(
    'task, rule',
    [
        (chomsky.EvenPairs(), even_pairs),
        (chomsky.ParityCheck(), parity_check),
        (chomsky.ReverseString(), reverse_string),
        (chomsky.ReverseString(vocab_size=7), reverse_string),
        (chomsky.OddsFirst(), odds_first),
        (chomsky.OddsFirst(vocab_size=9), odds_first),
        (chomsky.BucketSort(), bucket_sort),
        (chomsky.DuplicateString(), duplicate_string),
        (chomsky.MissingDuplicateString(), missing_duplicate),
    ],
    ids=lambda v: getattr(v, '__name__', '') or repr(v),
)
def test_strings(task, rule):
    """Catches the string as it is, evens first, a constant class, and another length or alphabet
    than asked for."""
    seen = set()
    for length, example in examples(task):
        assert len(example.prompt) == length
        assert ''.join(example.answer) == rule(''.join(example.prompt)), example
        seen |= {*example.prompt}
    assert seen == {*task.symbols}


@pytest.mark.parametrize(
    'kind, text, answer',
    [  # examples of the authors' code
        (chomsky.EvenPairs, '001110', '0'),
        (chomsky.EvenPairs, '0101001', '1'),
        (chomsky.ParityCheck, '1010100', '1'),
        (chomsky.ParityCheck, '01111', '0'),
        (chomsky.ReverseString, '011010', '010110'),
        (chomsky.OddsFirst, '00110101', '01000111'),
        (chomsky.OddsFirst, '110', '101'),
        (chomsky.BucketSort, '10204112', '00111224'),
        (chomsky.DuplicateString, '101', '101101'),
    ],
)
def test_published_examples(kind, text, answer):
    """Catches a definition of which generator and test agree, but not the authors."""
    assert kind()._answer(list(text)) == list(answer)


def test_bucket_sort_of_many_digits():
    """Catches 10 before 2."""
    for _, example in examples(chomsky.BucketSort(vocab_size=12)):
        assert example.answer == [
            str(v) for v in range(12) for _ in range(example.prompt.count(str(v)))
        ]


def test_cycle_navigation():
    """Catches a circle of another size, steps without the wrap, and left for right."""
    for length, example in examples(chomsky.CycleNavigation()):
        circle = list('01234')
        for step in example.prompt:
            if step == 'right':
                circle.append(circle.pop(0))
            elif step == 'left':
                circle.insert(0, circle.pop())
        assert example.answer == [circle[0]] and len(example.prompt) == length


def test_stack_manipulation():
    """Catches a stack from its bottom up, pops that are not done (or raise on an empty stack), and
    actions in the stack."""
    empty = 0
    for length, example in examples(chomsky.StackManipulation(), (1, 2, 3, 6, 20), 80):
        text = ''.join({'pop': '-', 'push0': 'a', 'push1': 'b'}.get(s, s) for s in example.prompt)
        assert (
            len(text) == length
            and re.fullmatch('[01]+[-ab]*', text)
            and (length == 1 or text[-1] in '-ab')
        )
        while '-' in text:  # each pop cancels with the symbol before it
            text = re.sub('[01ab]-|^-', '', text, count=1)
        assert ''.join(example.answer) == text.translate(str.maketrans('ab', '01'))[::-1]
        empty += not example.answer
    assert empty


@pytest.mark.parametrize('modulus', [2, 5, 10])
def test_modular_arithmetic(modulus):
    """Catches sums before products, a minus for all that follows, and another modulus."""
    for length, example in examples(chomsky.ModularArithmetic(modulus=modulus)):
        assert len(example.prompt) == length - (length + 1) % 2
        assert int(example.answer[0]) == eval(''.join(example.prompt)) % modulus


@pytest.mark.parametrize('products', [False, True])
def test_modular_arithmetic_with_brackets(products):
    """Catches a lost sign or operand, products where there are to be none, and expressions of
    another length."""
    seen = ''
    for length, example in examples(
        chomsky.ModularArithmeticBrackets(products=products), (1, 2, 3, 4, 5, 6, 9, 16, 40, 150)
    ):
        text = ''.join(example.prompt)
        assert len(text) == length
        assert int(example.answer[0]) == eval(text) % 5
        seen += text
    assert ('*' in seen) == products and {*'01234+-()'} <= {*seen}


@pytest.mark.parametrize('modulus', [2, 5, 7])
def test_solve_equation(modulus):
    """Catches the value in place of x, an equation with several solutions, and x always at the same
    place."""
    places = set()
    for length, example in examples(chomsky.SolveEquation(modulus=modulus), (3, 4, 6, 7, 10, 30)):
        left, right = ''.join(example.prompt).split('=')
        assert len(example.prompt) == length and left.count('x') == 1
        solutions = [
            str(x)
            for x in range(modulus)
            if eval(left.replace('x', str(x))) % modulus == int(right)
        ]
        assert solutions == example.answer
        places.add((length, left.index('x')))
    assert len({p for n, p in places if n == 30}) > 5


@pytest.mark.parametrize(
    'task, apply',
    [
        (chomsky.BinaryAddition(), lambda a, b: a + b),
        (chomsky.BinaryMultiplication(), lambda a, b: a * b),
    ],
    ids=lambda v: getattr(v, '__name__', '') or repr(v),
)
def test_binary(task, apply):
    """Catches numbers with the units last, an answer filled up with zeros, and numbers of 64
    bits."""
    places = set()

    def value(digits):
        return sum(fractions.Fraction(2) ** i for i, d in enumerate(digits) if d == '1')

    for length, example in examples(task, (3, 4, 5, 9, 30, 300)):
        a, b = ''.join(example.prompt).split(task.operation)
        assert len(example.prompt) == length and min(value(a), value(b)) > 0
        assert value(example.answer) == apply(value(a), value(b)) and example.answer[-1] == '1'
        places.add((length, len(a)))
    assert {p for n, p in places if n == 5} == {1, 2, 3}


def test_compute_sqrt():
    """Catches a root rounded up or to the nearest, floats on large numbers, and answers without
    their zeros."""
    zeros = 0
    for length, example in examples(chomsky.ComputeSqrt(), (1, 2, 3, 6, 15, 200)):
        number, root = (int(''.join(s), 2) for s in (example.prompt, example.answer))
        assert len(example.prompt) == length and len(example.answer) == -(-length // 2)
        assert 0 < number and root * root <= number < (root + 1) * (root + 1)
        zeros += example.answer[0] == '0'
    assert zeros
