"""Words of text in any script, in one normal form.

Search, mining, baselines, pairs made of texts and the check for leaks cut texts by them.

The form is Unicode's NFKC_Casefold (Unicode Standard, section 3.13, definition R5): compatibility
characters become plain ones, case is folded, and soft hyphens and what else has no width is
dropped; beside that a dotless i is an i, and the points of Arabic and Hebrew, which most writers
leave out, do not count. A word begins with a letter or a digit and goes on through letters, digits
and marks. Scripts without spaces between words (Han, Kana, Thai, ...) are cut into units, a letter
with its marks each, and looked up by neighbours, two and two.

ASCII text has the words that `re.findall(r'[^\\W_]+', text.lower())` gives.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from data.text import normal_form

RULES = 2  # of how texts are cut; 1: `[^\W_]+` or `\w+` in lower case, of the text as it came

# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt; Arabic points by themselves.
_UNSEEN = (
    r'\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E'
    r'\u2060-\u206F\u3164\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFF8\U0001BCA0-\U0001BCA3'
    r'\U0001D173-\U0001D17A\U000E0000-\U000E0FFF\uFC5E-\uFC63\uFCF2-\uFCF4\uFE70-\uFE7F'
)
# Points of Hebrew, and those of Arabic with the stroke that only makes a word longer (tatweel).
_POINTS = (
    r'\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\uFB1E\u0610-\u061A\u0640\u064B-\u065F'
    r'\u0670\u06D6-\u06DC\u06DF-\u06E4\u06E7\u06E8\u06EA-\u06ED\u08CA-\u08E1\u08E3-\u08FF'
)
# Letters of scripts that are written without spaces between words.
_UNSPACED = (
    r'\u2E80-\u2FDF\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303B'  # Han
    r'\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0003FFFD'
    r'\U00017000-\U00018D08'  # Tangut
    r'\u3041-\u3096\u309D-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF\uFF66-\uFF9F'  # Kana
    r'\U0001AFF0-\U0001AFFE\U0001B000-\U0001B16F\u3105-\u312F\u31A0-\u31BF'  # and Bopomofo
    r'\u0E01-\u0E30\u0E32\u0E33\u0E40-\u0E46'  # Thai
    r'\u0E81-\u0EB0\u0EB2\u0EB3\u0EBD\u0EC0-\u0EC6\u0EDC-\u0EDF'  # Lao
    r'\u1780-\u17B3\u17D7\u17DC'  # Khmer
    r'\u1000-\u102A\u103F\u1050-\u1055\u105A-\u105D\u1061\u1065\u1066\u106E-\u1070'  # Myanmar
    r'\u1075-\u1081\u108E\uA9E0-\uA9E4\uA9E6-\uA9EF\uA9FA-\uA9FE\uAA60-\uAA76\uAA7A\uAA7E\uAA7F'
    r'\u1950-\u196D\u1970-\u1974\u1980-\u19AB\u19B0-\u19C9\u1A20-\u1A54\uAA80-\uAAAF'  # Tai
    r'\uA984-\uA9B2\u1B05-\u1B33\u1B45-\u1B4C'  # Javanese and Balinese
)
_SPACED = re.compile(r'\S+')
_ASCII = {False: re.compile(r'[^\W_]+'), True: re.compile(r'\w+')}
# What in NFKC has one of * ? [ ] /, which in a name or a pattern for names says another thing.
_SIGNS = re.compile(
    r'([\u2047-\u2049\u2100\u2101\u2105\u2106\uFE16\uFE47\uFE48\uFE56\uFE61'
    r'\uFF0A\uFF0F\uFF1F\uFF3B\uFF3D]+)'
)


class _Patterns(NamedTuple):
    """Patterns for text that is not ASCII alone, compiled when there is some: marks are many."""

    unseen: re.Pattern
    points: re.Pattern
    beside: re.Pattern  # symbols that are no part of the word beside them
    word: re.Pattern
    unspaced: re.Pattern
    run: re.Pattern  # of a word the parts in scripts without spaces, and the others
    unit: re.Pattern
    piece: re.Pattern


@functools.cache
def marks() -> str:
    """Returns the combining marks (Mn and Mc) of this Python's Unicode, for a regex's `[]`."""
    codes = []
    for code in range(0x300, 0x20000):
        if unicodedata.category(chr(code)) in ('Mn', 'Mc'):
            codes.append(code)
    return _ranges(codes)


def _ranges(codes: list[int]) -> str:
    """Returns ascending code points as they stand in a regex's `[]`."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and code == runs[-1][-1] + 1:
            runs[-1].append(code)
        else:
            runs.append([code])
    return ''.join(f'\\U{run[0]:08X}-\\U{run[-1]:08X}' for run in runs)


def _stands_beside(code: int) -> bool:
    """Returns whether NFKC would join a symbol to a word that it is no part of.

    Of ™ it makes TM, of ½ 1⁄2, of ① 1. Units of measure (㎏) do follow their number, and ideographs
    are cut by twos anyway.
    """
    tag = unicodedata.decomposition(chr(code)).partition(' ')[0]
    symbol = unicodedata.category(chr(code)).startswith('S')
    if not (tag in ('<circle>', '<fraction>') or symbol and tag in ('<super>', '<compat>')):
        return False
    form = unicodedata.normalize('NFKC', chr(code))
    return any(map(str.isalnum, form)) and not re.search(f'[{_UNSPACED}]', form)


@functools.cache
def _patterns() -> _Patterns:
    beside = _ranges([code for code in range(0xA0, 0x20000) if _stands_beside(code)])
    return _Patterns(
        unseen=re.compile(f'[{_UNSEEN}]+'),
        points=re.compile(f'[{_POINTS}]+'),
        beside=re.compile(f'[{beside}]'),
        word=re.compile(rf'\w[\w{marks()}]*'),
        unspaced=re.compile(f'[{_UNSPACED}]'),
        run=re.compile(f'[{_UNSPACED}][{_UNSPACED}{marks()}]*|[^{_UNSPACED}]+'),
        unit=re.compile(f'[{_UNSPACED}][{marks()}]*'),
        piece=re.compile(rf'[^\w\s]*+[{_UNSPACED}][^\w\s]*+|[^\s{_UNSPACED}]+'),
    )


def normal(text: str, turkish: bool = False) -> str:
    """Returns the normal form of a text, of its words as of what stands between them.

    The form of a normal form is itself. `turkish`: a capital I is dotless, and dotless ones stay
    apart.
    """
    if text.isascii() and not turkish:
        return text.lower()
    patterns = _patterns()

    # What is not seen goes first: between two characters it keeps NFKC from joining them.
    text = patterns.beside.sub(r' \g<0> ', patterns.unseen.sub('', text))
    text = patterns.points.sub('', normal_form('NFKC', text))
    if turkish:
        text = text.replace('İ', 'i').replace('I', 'ı')

    # Folding makes of İ an i with a dot over it, and takes others apart, which are joined again.
    text = text.casefold()
    if not turkish:
        text = text.replace('ı', 'i')
    return normal_form('NFKC', re.sub('(?<=i)\u0307+', '', text))


def _cut(text: str, joined: bool, turkish: bool, of_run: Callable) -> list[str]:
    """Returns the words of a text.

    Args:
      text: any.
      joined: an underscore is a letter.
      turkish: as `normal` takes it.
      of_run: makes words of the units of a run without spaces.
    """
    if text.isascii() and not turkish:
        return _ASCII[joined].findall(text.lower())
    patterns = _patterns()
    text = normal(text, turkish)
    spaced = patterns.word.findall(text if joined else text.replace('_', ' '))
    if not patterns.unspaced.search(text):
        return spaced
    cut: list[str] = []
    for word in spaced:
        for run in patterns.run.findall(word):
            if patterns.unspaced.match(run):
                cut += of_run(patterns.unit.findall(run))
            else:
                cut.append(run)
    return cut


def _neighbours(units: list[str]) -> list[str]:
    return [a + b for a, b in zip(units, units[1:])]


def words(text: str, joined: bool = False) -> list[str]:
    """Returns the words of a text in order, in their normal form.

    In scripts without spaces each letter is one. Where all words of one text stand in another, one
    after the other, the text stands there.

    `joined`: an underscore is a letter, so that read_csv is one word and not two.
    """
    return _cut(text, joined, False, list)


def terms(text: str, joined: bool = False, turkish: bool = False) -> list[str]:
    """Returns what a text is found by: its words.

    In scripts without spaces that is each letter, and each two that are neighbours. `joined` as in
    `words`, `turkish` as in `normal`.
    """

    def both(units: list[str]) -> list[str]:
        pairs = _neighbours(units)
        return [term for pair in itertools.zip_longest(units, pairs) for term in pair if term]

    return _cut(text, joined, turkish, both)


def asked(text: str, joined: bool = False, turkish: bool = False) -> list[str]:
    """Returns the terms that a query asks for.

    Of a run of letters without spaces these are its neighbours only, or the letter that stands
    alone, so that nothing is found for a letter in common.
    """
    return _cut(text, joined, turkish, lambda units: _neighbours(units) or units)


def pieces(text: str) -> list[str]:
    """Returns a text cut at white space, and after each letter of a script without spaces.

    The length of a passage is counted by these. For ASCII text it is `text.split()`.
    """
    if text.isascii() or not _patterns().unspaced.search(text):
        return text.split()
    return _patterns().piece.findall(text)


def places(text: str) -> list[tuple[int, int]]:
    """Returns (first character, end) of each of the `pieces` of a text."""
    pattern = _SPACED if text.isascii() else _patterns().piece
    return [match.span() for match in pattern.finditer(text)]


def plain(text: str) -> str:
    """Returns a text in NFC, without what is not seen: what looks alike is alike."""
    if text.isascii():
        return text
    return normal_form('NFC', _patterns().unseen.sub('', text))


def same_name(text: str) -> str:
    """Returns a name, or a pattern for names, in a form that its spellings share.

    That is NFC, as file systems differ in it (macOS takes é apart).
    """
    return normal_form('NFC', text)


def like_name(text: str) -> str:
    """Returns a name as it is typed that has a ligature or letters of full width.

    That is NFKC without what is not seen. What would become a / or a sign of patterns stays as it
    is; case does too.
    """
    if text.isascii():
        return text
    parts = _SIGNS.split(_patterns().unseen.sub('', text))
    parts[::2] = [normal_form('NFKC', part) for part in parts[::2]]
    return ''.join(parts)
