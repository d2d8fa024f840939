"""Copying, reversing and sorting words.

Kazemnejad et al. 2023, arXiv 2305.19466, appendix B, and the authors' generators.
"""

import dataclasses

from data.records import DataError
from data.tasks.base import Example, Task, letters

_KAZEMNEJAD = 'Kazemnejad et al. 2023, arXiv 2305.19466, appendix B'


@dataclasses.dataclass(frozen=True)
class Copy(Task):
    """The words of the prompt, once or `twice`.

    `kind`: words, random words of the alphabet (cmc); same, one word repeated (rsc); replaced, 'a
    with b in a a a' -> 'b b b' (rdc). `twice`: the answer comes two times, with <next> between
    (cmc2x), or, for `same`, as 2N words (rsc2x).
    """

    kind: str = 'words'
    twice: bool = False
    words: int = 100
    source = _KAZEMNEJAD
    length = 'words in the prompt'

    def check(self):
        if self.kind not in ('words', 'same', 'replaced'):
            raise DataError(
                f"task_args.kind is {self.kind!r}: expected 'words', 'same' or 'replaced'"
            )
        if self.twice and self.kind == 'replaced':
            raise DataError("task_args.twice is True: not defined for kind 'replaced'")

    @property
    def symbols(self):
        return (*letters(self.words), '<next>', '<with>', '<in>')

    def size(self, length):
        marks = {'words': int(self.twice), 'same': 0, 'replaced': 4}[self.kind]
        return length * (3 if self.twice else 2) + marks

    def sample(self, rng, length):
        if self.kind == 'words':
            prompt = [f'w{i}' for i in rng.integers(self.words, size=length)]
            return Example(prompt, prompt + ['<next>', *prompt] if self.twice else prompt)
        a, b = (f'w{i}' for i in rng.choice(self.words, 2, replace=False))
        if self.kind == 'same':
            return Example([a] * length, [a] * (2 * length if self.twice else length))
        return Example([a, '<with>', b, '<in>', *[a] * length], [b] * length)


@dataclasses.dataclass(frozen=True)
class Reverse(Task):
    """The words in reverse.

    `then`: '' (mc), 'reversed', the answer once more (mc2x), or 'copied', the words as they were
    (mcrv).
    """

    then: str = ''
    words: int = 100
    source = _KAZEMNEJAD
    length = 'words in the prompt'

    def check(self):
        if self.then not in ('', 'reversed', 'copied'):
            raise DataError(f"task_args.then is {self.then!r}: expected '', 'reversed' or 'copied'")

    @property
    def symbols(self):
        return (*letters(self.words), '<next>')

    def size(self, length):
        return 3 * length + 1 if self.then else 2 * length

    def sample(self, rng, length):
        prompt = [f'w{i}' for i in rng.integers(self.words, size=length)]
        answer = prompt[::-1]
        if self.then:
            answer += ['<next>', *(prompt[::-1] if self.then == 'reversed' else prompt)]
        return Example(prompt, answer)


@dataclasses.dataclass(frozen=True)
class Sort(Task):
    """Words of an ordered alphabet (single tokens), in ascending order.

    `digits`: numbers from 10 to 9999 instead, digit by digit.
    """

    digits: bool = False
    words: int = 50
    source = _KAZEMNEJAD
    length = 'words or numbers'

    @property
    def symbols(self):
        return (*'0123456789', ',') if self.digits else letters(self.words)

    def size(self, length):
        return 2 * (5 * length - 1) if self.digits else 2 * length

    def sample(self, rng, length):
        if not self.digits:
            values = rng.integers(self.words, size=length)
            return Example([f'w{v}' for v in values], [f'w{v}' for v in sorted(values)])
        values = rng.integers(10, 10000, size=length).tolist()
        return Example(self._spell(values), self._spell(sorted(values)))

    def _spell(self, numbers: list[int]) -> list[str]:
        return list(','.join(map(str, numbers)))
