"""Strings that a tokenizer may stumble over: all planes, controls, marks, spaces, line ends."""

import random

WORDS = (
    *'a capital do Brasil é a cidade onde 2024 cafés, naïve don’t I\'ll "x" 日本語'.split(),
    '👨‍👩‍👧',
)
ODD = (
    *'  \n \n\n \r\n \t \0 \x1f \x7f \x85 \u00a0 \u2028 \u3000 \ufeff \ufffd \ufdd0 \u2581'.split(
        ' '
    ),
    *('  ', '   ', '\u200d', 'e\u0301', '\u1112\u1161', '<0x41>', '\U0010ffff', '1234567', '٣٤'),
)
PLANES = [(plane << 16, (plane << 16) + 0xFFFF) for plane in range(17)]


def draw(count: int, seed: int, marks: tuple[str, ...] = ()) -> list[str]:
    """Returns so many strings of Unicode's characters, the same for the same arguments.

    `marks`: texts of special tokens, which are among them whole and in part.
    """
    rng = random.Random(f'strings {seed}')
    return [''.join(_piece(rng, marks) for _ in range(rng.randrange(12))) for _ in range(count)]


def _piece(rng: random.Random, marks: tuple[str, ...]) -> str:
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice((' ', ' ', '')) + rng.choice(WORDS)
    if kind == 3:
        return rng.choice(ODD)
    if kind == 4 and marks:
        mark = rng.choice(marks)
        return mark[rng.choice((0, 0, 1)) : rng.choice((None, None, -1))]
    if kind == 5:
        return rng.choice(' \n\t-=a') * rng.randrange(1, 9)
    if kind == 6:
        return chr(rng.randrange(0x20, 0x500))
    code = rng.randint(*rng.choice(PLANES))
    return '' if 0xD800 <= code < 0xE000 else chr(code)
