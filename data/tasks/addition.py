"""Addition digit by digit, in the forms and with the lengths that papers compare."""

import dataclasses

import numpy as np

from data.records import DataError
from data.tasks.base import Example, Task, letters

_FORMS = ('plain', 'reversed', 'all_reversed', 'scratchpad')
LENGTHS = ('kazemnejad', 'coupling', 'longest')
_HINTS = 128


@dataclasses.dataclass(frozen=True)
class Addition(Task):
    """`a + b` -> the sum, one digit a symbol.

    `form`: plain, the most significant digit first (Kazemnejad et al. 2023); reversed, the answer's
    least significant digit first (Cho et al. 2024, arXiv 2405.20671); all_reversed, that of all
    three numbers (McLeish et al. 2024, arXiv 2405.17399); scratchpad, the sum of each pair of
    digits with its carry, then the answer (Nye et al. 2021, arXiv 2112.00114).

    `lengths`: how many digits a and b have, where training has numbers of low to high digits and
    the test a length n:

    kazemnejad: in training each pair (digits of a, digits of b) from low to high is alike, so that
      the longer number has n digits with weight 2n - 1 (low 1); in the test each pair whose longer
      number has n digits, the other low to n (McGill-NLP/length-generalization 40f8a44,
      scripts/dataset_builders/make_addition_dataset.py:86-96 and 106-129). So are McLeish et al.'s
      pairs in training (mcleish7/arithmetic 86022a5, create_data_split.py, `bucket_method_gen`).
    coupling: in training both are uniform from low to high, each for itself, which is the same; in
      the test both have n digits (HanseulJo/position-coupling b9cad94, src/data/addition.py:139 and
      evaluate_model.py:116-119).
    longest: the longer number has n digits, n uniform in training, the other 1 to n, uniform: short
      sums come more often than in either source. Results up to b09c89d were made so.

    A digit is uniform, the first of several from 1 on. `equal`: both have n digits, n uniform in
    training, whatever `lengths` says. `padded`: the shorter number and the answer are filled up
    with zeros, to the digits of the longer number and one more. `hints`: a letter before each digit
    says its place (Zhou et al. 2023, arXiv 2310.16028).

    Not taken over: the sources train on a fixed set of examples (100,000), here each is new.
    """

    form: str = 'plain'
    padded: bool = False
    equal: bool = False
    hints: bool = False
    lengths: str = 'kazemnejad'
    source = (
        'Kazemnejad et al. 2023, arXiv 2305.19466, appendix B; Zhou et al. 2024, arXiv 2402.09371; '
        'Cho et al. 2024, arXiv 2405.20671'
    )
    length = 'digits of the longer number'
    schemes = ('abacus', 'coupling')

    def check(self):
        if self.form not in _FORMS:
            raise DataError(f'task_args.form is {self.form!r}: expected one of {", ".join(_FORMS)}')
        if self.lengths not in LENGTHS:
            raise DataError(
                f'task_args.lengths is {self.lengths!r}: expected one of {", ".join(LENGTHS)}'
            )
        if self.hints and self.form == 'scratchpad':
            raise DataError('task_args.hints is True: not defined for the scratchpad')

    @property
    def symbols(self):
        return (*'0123456789+', ';', ',', *(letters(_HINTS, 'h') if self.hints else ()))

    def size(self, length):
        digits = 3 * length + 1
        if self.hints:
            digits *= 2
        steps = 6 * length + 1 if self.form == 'scratchpad' else 0
        return digits + 1 + steps

    @property
    def before(self):
        return {'lengths': self.lengths if self.equal else 'longest'}

    def sample(self, rng, length):
        return self.tested(rng, length, 1)

    def tested(self, rng, length, low):
        return self._sum(rng, *self._digits(rng, length, min(low, length)))

    def row(self, rng, low, high):
        """Returns two sums, each drawn for itself; by length where a parameter asks for it."""
        if self._by_length:
            return super().row(rng, low, high)
        first = self._sum(rng, *rng.integers(low, high + 1, 2).tolist())
        second = self._sum(rng, *rng.integers(low, high + 1, 2).tolist())
        return first, second

    def row_size(self, low, high):
        return super().row_size(low, high) if self._by_length else 2 * (self.size(high) + 3)

    @property
    def _by_length(self) -> bool:
        return self.equal or self.lengths == 'longest'

    def _digits(self, rng: np.random.Generator, length: int, low: int) -> tuple[int, int]:
        """Returns the digits of a and b in a test of this length."""
        if self.equal or self.lengths == 'coupling':
            return length, length
        if self.lengths == 'longest':
            other = int(rng.integers(1, length + 1))
            return (other, length) if rng.integers(2) else (length, other)
        # The pairs whose longer number has this length, in order: (n, low) .. (n, n), (low, n) ..
        place = int(rng.integers(2 * (length - low) + 1))
        beyond = place - (length - low) - 1
        return (length, low + place) if beyond < 0 else (low + beyond, length)

    def _sum(self, rng: np.random.Generator, digits_a: int, digits_b: int) -> Example:
        """Returns a sum of two numbers of so many digits."""
        length = max(digits_a, digits_b)
        if self.hints and length + 1 > _HINTS:
            raise DataError(
                f'addition with index hints has {_HINTS} of them: expected at most {_HINTS - 1} '
                f'digits, found {length}'
            )
        a = self._number(rng, digits_a)
        b = self._number(rng, digits_b)
        value = int(''.join(map(str, a))) + int(''.join(map(str, b)))
        total = [int(digit) for digit in str(value)]
        if self.padded:
            a = [0] * (length - len(a)) + a
            b = [0] * (length - len(b)) + b
            total = [0] * (length + 1 - len(total)) + total

        # The answer, then the prompt, each in the order of the form.
        shown = total[::-1] if self.form != 'plain' else total
        if self.form == 'scratchpad':
            answer = self._steps(a, b) + [str(d) for d in shown]
        else:
            answer = self._hinted(shown, self.form != 'plain')
        units_first = self.form == 'all_reversed'
        if units_first:
            a = a[::-1]
            b = b[::-1]
        prompt = [*self._hinted(a, units_first), '+', *self._hinted(b, units_first)]
        if self.hints or self.form == 'scratchpad':
            return Example(prompt, answer)
        ids = {'abacus': self._abacus(a, b, shown), 'coupling': self._coupling(a, b, shown)}
        return Example(prompt, answer, ids)

    def _number(self, rng, digits: int) -> list[int]:
        first = rng.integers(1 if digits > 1 else 0, 10)
        return [int(first), *rng.integers(0, 10, size=digits - 1).tolist()]

    def _hinted(self, digits: list[int], units_first: bool = False) -> list[str]:
        if not self.hints:
            return [str(d) for d in digits]
        places = range(len(digits)) if units_first else reversed(range(len(digits)))
        return [s for d, place in zip(digits, places) for s in (f'h{place}', str(d))]

    def _steps(self, a: list[int], b: list[int]) -> list[str]:
        """Returns, from the units on: digit of a, of b, carry out, digit of the sum, ';'."""
        steps = []
        carry = 0
        for place in range(max(len(a), len(b))):
            x, y = (n[-1 - place] if place < len(n) else 0 for n in (a, b))
            carry, digit = divmod(x + y + carry, 10)
            steps += [str(x), str(y), ',', str(carry), str(digit), ';']
        return [*steps, ',']

    def _abacus(self, a, b, shown) -> list[int]:
        """Returns each digit's place in its number as written, from 1; 0 for all else.

        McLeish et al. 2024, arXiv 2405.17399, section 3.
        """

        def count(digits):
            return list(range(1, len(digits) + 1))

        return [0, *count(a), 0, *count(b), 0, *count(shown)]

    def _coupling(self, a, b, shown) -> list[int]:
        """Returns ids that digits of the same significance share, units 2.

        '+' has 1, and <sep> the id before that of the answer's first digit in the order of ids (Cho
        et al. 2024, arXiv 2405.20671, section 3.1, and the authors' code).
        """

        def rising(digits):
            return list(range(2, len(digits) + 2))

        def falling(digits):
            return rising(digits)[::-1]

        operand = rising if self.form == 'all_reversed' else falling
        if self.form == 'plain':
            answer = falling(shown)
            separator = len(shown) + 2
        else:
            answer = rising(shown)
            separator = 1
        return [0, *operand(a), 1, *operand(b), separator, *answer]
