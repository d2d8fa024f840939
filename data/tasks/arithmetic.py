"""Sums, polynomials, parity and chains of assignments.

Kazemnejad et al. 2023, arXiv 2305.19466, appendix B, and the authors' generators,
scripts/dataset_builders of McGill-NLP/length-generalization.
"""

import dataclasses
import string

from data.records import DataError
from data.tasks.base import Example, Task

_KAZEMNEJAD = 'Kazemnejad et al. 2023, arXiv 2305.19466, appendix B'


@dataclasses.dataclass(frozen=True)
class Summation(Task):
    """`3 + 9 + 4` -> 6: the sum of digits from 1 to 9, mod 10, as the authors' generator makes it
    with `--modular` (make_sum_dataset.py, which gives the whole sum without)."""

    source = _KAZEMNEJAD
    length = 'digits to sum'

    @property
    def symbols(self):
        return (*'0123456789+',)

    def size(self, length):
        return 2 * length

    def sample(self, rng, length):
        digits = rng.integers(1, 10, size=length).tolist()
        return Example(list('+'.join(map(str, digits))), [str(sum(digits) % 10)])


@dataclasses.dataclass(frozen=True)
class Polynomial(Task):
    """`x = - 2 in 3 x ^ 2 + - 1 x ^ 0` -> 1: its value mod 10 (from 0 to 9, and 0^0 is 1), as the
    authors' generator makes it with `--modular` (make_poly_dataset.py; else the value itself).

    Coefficients are from -3 to 3, degrees from 0 to 3, x from -2 to 2; a sign is a symbol of its
    own, and only `-` is written.
    """

    source = _KAZEMNEJAD
    length = 'terms'

    @property
    def symbols(self):
        return (*'0123456789x=-+^', 'in')

    def size(self, length):
        return 6 * length + 5  # where x and all coefficients are negative

    def sample(self, rng, length):
        coefficients = rng.integers(-3, 4, size=length).tolist()
        degrees = rng.integers(0, 4, size=length).tolist()
        x = int(rng.integers(-2, 3))
        terms = []
        value = 0
        for coefficient, degree in zip(coefficients, degrees):
            terms.append(f'{coefficient}x^{degree}')
            value += coefficient * x**degree
        return Example([*f'x={x}', 'in', *'+'.join(terms)], [str(value % 10)])


@dataclasses.dataclass(frozen=True)
class Parity(Task):
    """1 where the number of ones is odd, else 0.

    (The authors answer No and Yes to whether it is even.)
    """

    source = _KAZEMNEJAD
    length = 'bits'

    @property
    def symbols(self):
        return ('0', '1')

    def size(self, length):
        return length + 1

    def sample(self, rng, length):
        bits = rng.integers(2, size=length).tolist()
        return Example([str(b) for b in bits], [str(sum(bits) % 2)])


@dataclasses.dataclass(frozen=True)
class Lego(Task):
    """A chain of assignments, `c = - 1 , a = + c , q = - a ? q` -> +.

    The answer is the sign of the variable after `?`. The first variable is +1 or -1, each other one
    plus or minus the one before it. The variable asked for is in the second half of the chain,
    behind the middle one. `permuted`: the clauses come in random order. (The authors answer +1 or
    -1, and ask each variable of a chain's second half, one example each: make_lego_dataset.py. Here
    each chain is new and asked once.)
    """

    permuted: bool = False
    source = f'{_KAZEMNEJAD}; Zhang et al. 2022, arXiv 2206.04301'
    length = 'variables in the chain'
    shortest = 2

    @property
    def symbols(self):
        return (*string.ascii_lowercase, *'=+-1,?')

    def size(self, length):
        return 5 * length + 2

    def sample(self, rng, length):
        if length > 26:
            raise DataError(
                'the chain of assignments has 26 variables: expected at most so many, found '
                f'{length}'
            )
        names = [string.ascii_lowercase[i] for i in rng.permutation(26)[:length]]
        signs = ['-+'[v] for v in rng.integers(2, size=length)]
        clauses = [[names[0], '=', signs[0], '1']]
        for i in range(1, length):
            sign = '+' if signs[i] == signs[i - 1] else '-'
            clauses.append([names[i], '=', sign, names[i - 1]])
        asked = int(rng.integers((length + 1) // 2, length))
        order = rng.permutation(length) if self.permuted else range(length)
        prompt = [s for i in order for s in (*clauses[i], ',')][:-1]
        return Example([*prompt, '?', names[asked]], [signs[asked]])
