"""The 15 tasks of Deletang et al. 2023 (arXiv 2207.02098).

Ruoss et al. 2023 (arXiv 2305.16843) use them for positions. Definitions are those of
google-deepmind/neural_networks_chomsky_hierarchy, folder tasks. There, answers are padded, and some
are ended by a symbol; here <eos> ends them.
"""

import dataclasses
import math

from data.records import DataError
from data.tasks.base import Example, Task

_DELETANG = (
    'Deletang et al. 2023, arXiv 2207.02098; '
    'google-deepmind/neural_networks_chomsky_hierarchy, tasks'
)


class _Chomsky(Task):
    source = _DELETANG
    length = 'symbols in the prompt'

    def size(self, length):
        return length + 1


class _Strings(_Chomsky):
    """Tasks on a random string of the digits below `vocab_size`."""

    vocab_size = 2

    @property
    def symbols(self):
        return tuple(map(str, range(self.vocab_size)))

    def sample(self, rng, length):
        prompt = [str(i) for i in rng.integers(self.vocab_size, size=length)]
        return Example(prompt, self._answer(prompt))


@dataclasses.dataclass(frozen=True)
class _Rearranged(_Strings):
    """Tasks whose answer has the symbols of the prompt in another order."""

    vocab_size: int = 2

    def check(self):
        if self.vocab_size < 2:
            raise DataError(f'task_args.vocab_size is {self.vocab_size}: expected 2 or more')

    def size(self, length):
        return 2 * length


@dataclasses.dataclass(frozen=True)
class EvenPairs(_Strings):
    """0 where the pairs 01 and 10 are of even number together, else 1."""

    def _answer(self, prompt):
        return [str(sum(a != b for a, b in zip(prompt, prompt[1:])) % 2)]


@dataclasses.dataclass(frozen=True)
class ParityCheck(_Strings):
    """0 where the number of ones is even, else 1."""

    def _answer(self, prompt):
        return [str(prompt.count('1') % 2)]


@dataclasses.dataclass(frozen=True)
class ReverseString(_Rearranged):
    """The string from its end to its beginning."""

    def _answer(self, prompt):
        return prompt[::-1]


@dataclasses.dataclass(frozen=True)
class OddsFirst(_Rearranged):
    """s1 s3 s5 .. s2 s4 s6 .., as the paper and the examples have it.

    (The code puts s2 s4 s6 .. first.)
    """

    def _answer(self, prompt):
        return prompt[::2] + prompt[1::2]


@dataclasses.dataclass(frozen=True)
class BucketSort(_Rearranged):
    """The string sorted."""

    vocab_size: int = 5

    def _answer(self, prompt):
        return sorted(prompt, key=int)


@dataclasses.dataclass(frozen=True)
class DuplicateString(_Rearranged):
    """The string two times."""

    def size(self, length):
        return 3 * length

    def _answer(self, prompt):
        return prompt * 2


@dataclasses.dataclass(frozen=True)
class MissingDuplicateString(_Chomsky):
    """`0 1 1 0 0 ? 1 0` -> 1: a string came two times, and one symbol is missing.

    Odd lengths have a `#` at the end.
    """

    shortest = 2

    @property
    def symbols(self):
        return (*'01?#',)

    def sample(self, rng, length):
        prompt = 2 * [str(i) for i in rng.integers(2, size=length // 2)]
        place = int(rng.integers(len(prompt)))
        answer = prompt[place]
        prompt[place] = '?'
        return Example(prompt + ['#'] * (length % 2), [answer])


@dataclasses.dataclass(frozen=True)
class CycleNavigation(_Chomsky):
    """Steps on a circle of five places, from place 0: where they end."""

    @property
    def symbols(self):
        return ('left', 'stay', 'right', *'01234')

    def sample(self, rng, length):
        steps = rng.integers(-1, 2, size=length).tolist()
        return Example([('stay', 'right', 'left')[s] for s in steps], [str(sum(steps) % 5)])


@dataclasses.dataclass(frozen=True)
class StackManipulation(_Chomsky):
    """`0 1 1 push0 pop pop` -> 1 0: a stack, and what is done to it -> the stack.

    It is read from its bottom up, and answered from its top down. A pop of an empty stack does
    nothing; an empty stack is an empty answer.
    """

    @property
    def symbols(self):
        return ('0', '1', 'pop', 'push0', 'push1')

    def size(self, length):
        return 2 * length

    def sample(self, rng, length):
        given = int(rng.integers(1, length)) if length > 1 else 1
        stack = [str(i) for i in rng.integers(2, size=given)]
        actions = [('pop', 'push0', 'push1')[i] for i in rng.integers(3, size=length - given)]
        prompt = stack + actions
        for action in actions:
            stack = stack[:-1] if action == 'pop' else stack + [action[-1]]
        return Example(prompt, stack[::-1])


@dataclasses.dataclass(frozen=True)
class _Modular(_Chomsky):
    """Arithmetic on the digits below `modulus`."""

    modulus: int = 5

    def check(self):
        if not 2 <= self.modulus <= 10:
            raise DataError(
                f'task_args.modulus is {self.modulus}: expected 2 to 10, values of one digit'
            )

    @property
    def symbols(self):
        return (*map(str, range(self.modulus)), *'+-*()x=')

    def _expression(self, rng, length: int, operations: str) -> tuple[list[str], int]:
        """Returns a random expression of `length` symbols, with brackets, and its value."""
        if length < 5:
            digit = int(rng.integers(self.modulus))
            text = {1: f'{digit}', 2: f'-{digit}', 3: f'({digit})', 4: f'(-{digit})'}[length]
            return list(text), (-digit if length in (2, 4) else digit) % self.modulus
        left = int(rng.integers(1, length - 3))
        a, x = self._expression(rng, left, operations)
        b, y = self._expression(rng, length - left - 3, operations)
        operation = operations[rng.integers(len(operations))]
        value = {'+': x + y, '-': x - y, '*': x * y}[operation] % self.modulus
        return ['(', *a, operation, *b, ')'], value


@dataclasses.dataclass(frozen=True)
class ModularArithmetic(_Modular):
    """`1 + 2 * 3 - 4` -> 3: the value mod `modulus`, products first."""

    length = 'symbols in the prompt; an even length has one less'

    def size(self, length):
        return (length + 1) // 2 * 2

    def sample(self, rng, length):
        digits = rng.integers(self.modulus, size=(length + 1) // 2).tolist()
        operations = ['+-*'[i] for i in rng.integers(3, size=len(digits) - 1)]
        prompt = [str(digits[0])]
        total = 0
        product = digits[0]
        for operation, digit in zip(operations, digits[1:]):
            prompt += [operation, str(digit)]
            if operation == '*':
                product = product * digit % self.modulus
            else:
                total += product
                product = digit if operation == '+' else -digit
        return Example(prompt, [str((total + product) % self.modulus)])


@dataclasses.dataclass(frozen=True)
class ModularArithmeticBrackets(_Modular):
    """`( ( 1 - ( - 2 ) ) * 4 )` -> 2: the value mod `modulus`.

    `products`: with `*` (the paper has them).
    """

    products: bool = True

    def sample(self, rng, length):
        prompt, value = self._expression(rng, length, '+-*' if self.products else '+-')
        return Example(prompt, [str(value)])


@dataclasses.dataclass(frozen=True)
class SolveEquation(_Modular):
    """`( x - ( - 2 ) ) = 1` -> 4: the x that solves the equation mod `modulus`.

    It is one alone, since there are no products.
    """

    shortest = 3

    def sample(self, rng, length):
        prompt, value = self._expression(rng, length - 2, '+-')
        place = int(rng.integers(len(prompt)))
        while not prompt[place].isdigit():
            place = (place + 1) % len(prompt)
        answer = prompt[place]
        prompt[place] = 'x'
        return Example([*prompt, '=', str(value)], [answer])


def _digits(rng, length: int) -> list[str]:
    """Returns the digits of a random number from 1 to 2**length - 1."""
    while True:
        digits = [str(i) for i in rng.integers(2, size=length)]
        if '1' in digits:
            return digits


def _number(units_first: list[str]) -> int:
    return int(''.join(units_first[::-1]), 2)


class _Binary(_Chomsky):
    """Two numbers above 0, units first, filled up with zeros, `operation` between them.

    The answer is units first, not filled.
    """

    shortest = 3

    @property
    def symbols(self):
        return ('0', '1', self.operation)

    def size(self, length):
        """Returns a bound that is reached; for products, from length 5 on."""
        return 2 * length - 1

    def sample(self, rng, length):
        first = int(rng.integers(1, length - 1))
        a = _digits(rng, first)
        b = _digits(rng, length - 1 - first)
        result = self._result(_number(a), _number(b))
        return Example([*a, self.operation, *b], list(f'{result:b}'[::-1]))


@dataclasses.dataclass(frozen=True)
class BinaryAddition(_Binary):
    """`0 0 1 + 0 1 1 0 1` -> 0 1 0 1 1: 4 + 22 = 26."""

    operation = '+'

    def _result(self, a, b):
        return a + b


@dataclasses.dataclass(frozen=True)
class BinaryMultiplication(_Binary):
    """`0 0 1 * 0 1 1 0 1` -> 0 0 0 1 1 0 1: 4 * 22 = 88."""

    operation = '*'

    def _result(self, a, b):
        return a * b


@dataclasses.dataclass(frozen=True)
class ComputeSqrt(_Chomsky):
    """`1 0 0 1 0 1` -> 1 1 0: the square root of a number above 0, rounded down.

    Units come last, zeros in front.
    """

    @property
    def symbols(self):
        return ('0', '1')

    def size(self, length):
        return length + (length + 1) // 2

    def sample(self, rng, length):
        prompt = _digits(rng, length)
        root = math.isqrt(int(''.join(prompt), 2))
        return Example(prompt, list(f'{root:b}'.zfill((length + 1) // 2)))
