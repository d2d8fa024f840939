"""Addition digit by digit, in the forms that papers compare."""

import dataclasses

from data.records import DataError
from data.tasks.base import Example, Task, letters

_FORMS = ('plain', 'reversed', 'all_reversed', 'scratchpad')
_HINTS = 128


@dataclasses.dataclass(frozen=True)
class Addition(Task):
    """`a + b` -> the sum, one digit a symbol.

    `form`: plain, the most significant digit first (Kazemnejad et al. 2023); reversed, the answer's least significant digit first
    (Cho et al. 2024, arXiv 2405.20671); all_reversed, that of all three numbers (McLeish et al. 2024, arXiv 2405.17399); scratchpad, the sum of each pair of digits with its carry, then the answer
    (Nye et al. 2021, arXiv 2112.00114).
    `padded`: the shorter number and the answer are filled up with zeros, to n and n + 1 digits. `equal`: both have n digits; else one
    has n and the other 1 to n. `hints`: a letter before each digit says its place (Zhou et al. 2023, arXiv 2310.16028).
    """

    form: str = 'plain'
    padded: bool = False
    equal: bool = False
    hints: bool = False
    source = 'Kazemnejad et al. 2023, arXiv 2305.19466, appendix B; Zhou et al. 2024, arXiv 2402.09371; Cho et al. 2024, arXiv 2405.20671'
    length = 'digits of the longer number'
    schemes = ('abacus', 'coupling')

    def check(self):
        if self.form not in _FORMS:
            raise DataError(f'task_args.form is {self.form!r}: expected one of {", ".join(_FORMS)}')
        if self.hints and self.form == 'scratchpad':
            raise DataError('task_args.hints is True: not defined for the scratchpad')

    @property
    def symbols(self):
        return (*'0123456789+', ';', ',', *(letters(_HINTS, 'h') if self.hints else ()))

    def size(self, length):
        digits = 3 * length + 1
        return (
            (2 * digits if self.hints else digits)
            + 1
            + (6 * length + 1 if self.form == 'scratchpad' else 0)
        )

    def sample(self, rng, length):
        if self.hints and length + 1 > _HINTS:
            raise DataError(
                f'addition with index hints has {_HINTS} of them: expected at most {_HINTS - 1} digits, found {length}'
            )
        a, b = length, length if self.equal else int(rng.integers(1, length + 1))
        if not self.equal and rng.integers(2):
            a, b = b, a
        a, b = (self._number(rng, n) for n in (a, b))
        total = [int(d) for d in str(int(''.join(map(str, a))) + int(''.join(map(str, b))))]
        if self.padded:
            a, b = ([0] * (length - len(n)) + n for n in (a, b))
            total = [0] * (length + 1 - len(total)) + total
        shown = total[::-1] if self.form != 'plain' else total
        answer = (
            self._steps(a, b) + [str(d) for d in shown]
            if self.form == 'scratchpad'
            else self._hinted(shown, self.form != 'plain')
        )
        units_first = self.form == 'all_reversed'
        if units_first:
            a, b = a[::-1], b[::-1]
        prompt = [*self._hinted(a, units_first), '+', *self._hinted(b, units_first)]
        ids = (
            {}
            if self.hints or self.form == 'scratchpad'
            else {'abacus': self._abacus(a, b, shown), 'coupling': self._coupling(a, b, shown)}
        )
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
        """From the units on: digit of a, digit of b, carry out, digit of the sum, ';'."""
        steps, carry = [], 0
        for place in range(max(len(a), len(b))):
            x, y = (n[-1 - place] if place < len(n) else 0 for n in (a, b))
            carry, digit = divmod(x + y + carry, 10)
            steps += [str(x), str(y), ',', str(carry), str(digit), ';']
        return [*steps, ',']

    def _abacus(self, a, b, shown) -> list[int]:
        """Each digit's place in its number as written, from 1; all else 0 (McLeish et al. 2024, arXiv 2405.17399, section 3)."""
        count = lambda digits: list(range(1, len(digits) + 1))
        return [0, *count(a), 0, *count(b), 0, *count(shown)]

    def _coupling(self, a, b, shown) -> list[int]:
        """Digits of the same significance share an id, units 2; '+' has 1, and <sep> the id before that of the answer's first digit
        in the order of ids (Cho et al. 2024, arXiv 2405.20671, section 3.1, and the authors' code)."""
        rises = lambda digits: list(range(2, len(digits) + 2))
        operand = rises if self.form == 'all_reversed' else lambda digits: rises(digits)[::-1]
        answer = rises(shown) if self.form != 'plain' else rises(shown)[::-1]
        return [
            0,
            *operand(a),
            1,
            *operand(b),
            1 if self.form != 'plain' else len(shown) + 2,
            *answer,
        ]
