"""Finding and keeping what was read: recall, copying out of noise, needles and registers."""

import dataclasses
import string

import numpy as np

from data.records import DataError
from data.tasks.base import Example, Task, letters


@dataclasses.dataclass(frozen=True)
class FlipFlop(Task):
    """A register of one bit: `w 1 i 0 r 1 w 0 i 1 r 0`, of which the bits of reads are asked.

    That is the bit that was written last. Each instruction, write, ignore or read, has a bit. The
    first one is a write, the last a read; between them are ignores with probability `ignore`, and
    writes and reads in equal parts: FFL(`ignore`).
    """

    ignore: float = 0.8
    source = 'Liu et al. 2023, arXiv 2306.00946, section 3'
    length = 'instructions, the first write and the last read included'
    shortest = 2

    def check(self):
        if not 0 <= self.ignore <= 1:
            raise DataError(
                f'task_args.ignore is {self.ignore}: expected a probability, from 0 to 1'
            )

    @property
    def symbols(self):
        return (*'wir01',)

    def size(self, length):
        return 2 * length

    def sample(self, rng, length):
        other = (1 - self.ignore) / 2
        between = rng.choice(list('wri'), size=length - 2, p=[other, other, self.ignore]).tolist()
        prompt = []
        asked = []
        stored = ''
        for kind in ['w', *between, 'r']:
            bit = stored if kind == 'r' else str(rng.integers(2))
            prompt += [kind, bit]
            if kind == 'w':
                stored = bit
            elif kind == 'r':
                asked.append(len(prompt) - 1)
        return Example(prompt, [], asked=asked)


@dataclasses.dataclass(frozen=True)
class SelectiveCopy(Task):
    """`memorised` words at random places among noise -> the words in their order."""

    memorised: int = 16
    words: int = 16
    source = 'Gu and Dao 2023, arXiv 2312.00752, section 4.1.1'
    length = 'symbols of noise in the prompt'

    def check(self):
        for name, least in dict(memorised=1, words=2).items():
            if getattr(self, name) < least:
                raise DataError(
                    f'task_args.{name} is {getattr(self, name)}: expected {least} or more'
                )

    @property
    def symbols(self):
        return (*letters(self.words), '<noise>')

    def size(self, length):
        return length + 2 * self.memorised

    def sample(self, rng, length):
        words = [f'w{i}' for i in rng.integers(self.words, size=self.memorised)]
        prompt = ['<noise>'] * (length + self.memorised)
        places = sorted(rng.choice(len(prompt), self.memorised, replace=False))
        for place, word in zip(places, words):
            prompt[place] = word
        return Example(prompt, words)


@dataclasses.dataclass(frozen=True)
class InductionHead(Task):
    """`.. a b .. a` -> b: the word that followed the last word where that came before.

    It came before once.
    """

    words: int = 16
    source = (
        'Olsson et al. 2022, arXiv 2209.11895; number of words: Gu and Dao 2023, arXiv 2312.00752, '
        'section 4.1.2'
    )
    length = 'words in the prompt'
    shortest = 3

    def check(self):
        if self.words < 2:
            raise DataError(f'task_args.words is {self.words}: expected 2 or more')

    @property
    def symbols(self):
        return letters(self.words)

    def size(self, length):
        return length + 1

    def sample(self, rng, length):
        a, *rest = rng.permutation(self.words).tolist()
        prompt = [f'w{rest[i]}' for i in rng.integers(len(rest), size=length)]
        place = int(rng.integers(length - 2))
        prompt[place] = prompt[-1] = f'w{a}'
        return Example(prompt, [prompt[place + 1]])


_KEYS = ('zoology', 'all')
_STEEPEST = 32  # power up to which weights of the longest texts are no overflow


@dataclasses.dataclass(frozen=True)
class MultiQueryRecall(Task):
    """MQAR: `k3 v9 k1 v4 .. k1 v4 .. k3 v9`: pairs of a key and its value, then each key once more,
    with its value, which is asked, among noise.

    Of `words` symbols the first half are keys and the second half values. A sequence has keys that
    are all different, and so are its values. `keys`: zoology, drawn from 1 to words/2 - 1, and 0 is
    only noise (HazyResearch/zoology d88d6f5, zoology/data/multiquery_ar.py:98-100); all, from 0 on.

    The number of pairs and of symbols T are free, T at least 4 a pair; one of them is the length:
    without `pairs` it counts pairs, and T is `tokens`, or `spread` a pair where that is 0 (8, as in
    the source's defaults: 64 symbols, 8 pairs); with `pairs` there are so many, and it counts T.

    After the pairs each query takes one of the places that are left, two symbols wide, number n
    with probability in proportion to n^(power - 1): near ones are likelier. Noise is any of the
    words. Not taken over: there the value is the label but not the next input, noise is (here it
    is both), and T is even (here an odd one ends with a symbol of noise).
    """

    words: int = 8192
    spread: int = 8
    power: float = 0.01
    keys: str = 'zoology'
    tokens: int = 0
    pairs: int = 0
    source = 'Arora et al. 2023, arXiv 2312.04927; multiquery_ar of HazyResearch/zoology'
    length = 'pairs of a key and a value; with `pairs`, symbols'

    def check(self):
        if self.keys not in _KEYS:
            raise DataError(f'task_args.keys is {self.keys!r}: expected one of {", ".join(_KEYS)}')
        least = dict(words=2 if self.keys == 'all' else 4, spread=4, tokens=0, pairs=0)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise DataError(
                    f'task_args.{name} is {getattr(self, name)}: expected {value} or more'
                )
        if self.tokens and self.pairs:
            raise DataError(
                f'task_args.tokens is {self.tokens} and task_args.pairs {self.pairs}: expected 0 '
                f'for one of them, which is the length'
            )
        if not 0 < self.power <= _STEEPEST:
            raise DataError(
                f'task_args.power is {self.power}: expected more than 0, and at most {_STEEPEST}'
            )

    @property
    def before(self):
        return {'keys': 'all', 'tokens': 0, 'pairs': 0}

    @property
    def symbols(self):
        return (*letters(self.words // 2, 'k'), *letters(self.words // 2, 'v'))

    @property
    def shortest(self):
        return 4 * self.pairs or 1

    def size(self, length):
        """Returns the symbols of the prompt.

        Raises DataError where so many pairs have no room, or there are not so many keys.
        """
        pairs = self.pairs or length
        size = length if self.pairs else self.tokens
        if size and size < 4 * pairs:
            field = 'pairs' if self.pairs else 'tokens'
            raise DataError(
                f'task_args.{field} is {self.pairs or self.tokens}: expected 4 symbols or more for '
                f'each pair, found {size} for {pairs} pairs'
            )
        if pairs > self.words // 2 - self._first:
            raise DataError(
                f'task_args.words is {self.words}: expected {2 * (pairs + self._first)} or more '
                f'for {pairs} pairs'
            )
        return size or self.spread * pairs

    @property
    def _first(self) -> int:
        return 0 if self.keys == 'all' else 1

    def sample(self, rng, length):
        size = self.size(length)
        pairs = self.pairs or length

        # The pairs, each key followed by its value.
        first = self._first
        key_numbers = first + rng.choice(self.words // 2 - first, pairs, replace=False)
        value_numbers = rng.choice(self.words // 2, pairs, replace=False)
        keys = [f'k{i}' for i in key_numbers]
        values = [f'v{i}' for i in value_numbers]
        prompt = [symbol for pair in zip(keys, values) for symbol in pair]

        # Noise, in which each key comes once more, with its value.
        symbols = self.symbols
        left = size - len(prompt)
        prompt += [symbols[i] for i in rng.integers(len(symbols), size=left)]
        near = np.arange(1, left // 2 + 1) ** (self.power - 1)
        places = 2 * (pairs + rng.choice(len(near), pairs, replace=False, p=near / near.sum()))
        for place, key, value in zip(places, keys, values):
            prompt[place : place + 2] = key, value
        return Example(prompt, [], asked=sorted(int(place) + 1 for place in places))


@dataclasses.dataclass(frozen=True)
class IndirectIndexing(Task):
    """`h e l p o , p , - 2` -> e: the character so far to the left (-) or right (+) of another.

    That one is named, and occurs once. The place of the answer is uniform over all places but that
    of the named character; offsets are written in digits.
    """

    source = 'Gopalakrishnan et al. 2025 (PoPE), arXiv 2509.10534'
    length = 'characters of the string'
    shortest = 2

    @property
    def symbols(self):
        return (*string.ascii_letters, *string.digits, *'+-,')

    def size(self, length):
        return length + 5 + len(str(length - 1))

    def sample(self, rng, length):
        named, *rest = (string.ascii_letters[i] for i in rng.permutation(52))
        text = [rest[i] for i in rng.integers(51, size=length)]
        place, target = (int(i) for i in rng.choice(length, 2, replace=False))
        text[place] = named
        return Example([*text, ',', named, ',', *f'{target - place:+d}'], [text[target]])


_FILLER = (
    'the grass is green . the sky is blue . the sun is yellow . here we go . there and back again .'
).split()
_NEEDLE = 'the pass key is {0} . remember it . {0} is the pass key .'
_QUESTION = 'what is the pass key ? the pass key is'.split()


@dataclasses.dataclass(frozen=True)
class Passkey(Task):
    """A key of `digits` digits hidden in filler -> the key.

    The words are the paper's, without its words on what to do. `depth`: the part of the filler that
    comes before the key, from 0 to 1; -1: random, as in the paper.
    """

    depth: float = -1.0
    digits: int = 5
    source = (
        'Mohtashami and Jaggi 2023, arXiv 2305.16300; generate_prompt of epfml/landmark-attention'
    )
    length = 'words of filler, full stops included'

    def check(self):
        if self.depth != -1 and not 0 <= self.depth <= 1:
            raise DataError(f'task_args.depth is {self.depth}: expected 0 to 1, or -1 for random')
        if self.digits < 1:
            raise DataError(f'task_args.digits is {self.digits}: expected 1 or more')

    @property
    def symbols(self):
        return (
            *string.digits,
            *dict.fromkeys([*_FILLER, *_NEEDLE.replace('{0}', '').split(), *_QUESTION]),
        )

    def size(self, length):
        return length + len(_NEEDLE.split()) - 2 + len(_QUESTION) + 3 * self.digits

    def sample(self, rng, length):
        key = [str(d) for d in rng.integers(10, size=self.digits)]
        before = int(rng.integers(length + 1)) if self.depth == -1 else round(self.depth * length)
        needle = _NEEDLE.format(' '.join(key)).split()
        prompt = [*_filler(before), *needle, *_filler(length - before), *_QUESTION]
        return Example(prompt, key)


def _filler(count: int) -> list[str]:
    return (_FILLER * (count // len(_FILLER) + 1))[:count]


_HIGHEST = 10


@dataclasses.dataclass(frozen=True)
class Counting(Task):
    """Counters: `a =0; pass; a ++; b =0; a ++; print a` -> 2.

    Operations set a variable to 0, pass, or add 1 to one that was set. They come in parts
    1 : 50 : 7, but no variable goes above 10. The variable asked for is any one that was set.
    """

    variables: int = 3
    source = (
        'Golovneva et al. 2024 (CoPE), arXiv 2405.18719, section 5.2; count_data_gen.py of '
        'facebookresearch/RAM'
    )
    length = 'operations'

    def check(self):
        if not 1 <= self.variables <= 26:
            raise DataError(f'task_args.variables is {self.variables}: expected 1 to 26')

    @property
    def symbols(self):
        return (
            *string.ascii_lowercase[: self.variables],
            '=0;',
            '++;',
            'pass;',
            'print',
            *map(str, range(_HIGHEST + 1)),
        )

    def size(self, length):
        """Returns a bound that is reached where no operation is `pass;`."""
        return 2 * length + 3

    def sample(self, rng, length):
        while True:
            prompt, values = self._program(rng, length)
            if values:
                asked = list(values)[rng.integers(len(values))]
                return Example([*prompt, 'print', asked], [str(values[asked])])

    def _program(self, rng, length: int) -> tuple[list[str], dict[str, int]]:
        prompt = []
        values: dict[str, int] = {}
        done = 0
        while done < length:
            draw = rng.integers(58)
            if draw < 50:
                prompt.append('pass;')
            elif draw < 57:
                name = list(values)[rng.integers(len(values))] if values else ''
                if values.get(name, _HIGHEST) == _HIGHEST:
                    continue  # nothing to add to: another operation
                values[name] += 1
                prompt += [name, '++;']
            else:
                name = string.ascii_lowercase[rng.integers(self.variables)]
                values[name] = 0
                prompt += [name, '=0;']
            done += 1
        return prompt, values
