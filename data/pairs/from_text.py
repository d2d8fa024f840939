"""Pairs made of texts without labels.

Each kind is a function of a text and of the words that a passage may have, and yields (query,
positive) pairs. Nothing in them is drawn but by hash: the same text gives the same pairs. A word is
what stands between white space, and in scripts without spaces a letter (data/words.py: pieces); a
sentence ends at . ! ? … and what other scripts have for them, or with its line, where that is not a
line of wrapped text.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from data import words as rules

# Of everything here: raised where the same text would give other pairs. Part of the keys of stores.
RULES = 1

_FEWEST_WORDS = 3  # of a sentence or passage; of less, no model can tell what belongs to it
_HEADING_WORDS = 8  # of a heading at most; letters in scripts without spaces: twice as many
_SHARE_KEPT = 0.1  # of cloze pairs, whose sentence stays where it was
_WRAPPED = range(50, 101)  # characters of a line that may go on in the next one
_OWN = '।॥؟۔։።'  # signs that end sentences and nothing else, of scripts with spaces
_UNSPACED = '。！？｡។။'  # and without: nothing need follow
_SPACED = '.!?…' + _OWN
_ENDS = _SPACED + _UNSPACED
_CLOSING = '"\'”’»)]」』）】》'
_BOUNDARY = re.compile(  # nothing is tried twice, whatever the text
    rf'(?<![{_SPACED}])[{_SPACED}]++[{re.escape(_CLOSING)}]*+\s++'
    rf'|(?<![{_UNSPACED}])[{_UNSPACED}]++[{re.escape(_CLOSING)}]*+\s*+'
)
_OPENING = re.compile(r'["\'“‘«(\[—–¿¡\s-]*')
_BULLET = re.compile(r'[-*•+>|–—] |\d+[.)] ')
_STATES = re.compile(r'[,;:=|→»]| [—–-] ')  # in a line that says something: headings only name it
_LOOKED_BACK = 9  # characters before a full stop that may hold an abbreviation


class Sentence(NamedTuple):
    """A sentence of a text.

    Attributes:
      text: without white space around it.
      before: what stands between it and the one before it.
      ends: it is the last of a paragraph.
    """

    text: str
    before: str
    ends: bool

    @property
    def num_words(self) -> int:
        """Words, as the length of a passage counts them."""
        return len(rules.pieces(self.text))

    @property
    def asks(self) -> bool:
        """It ends with a question mark, perhaps inside of quotation marks."""
        return self.text.rstrip(_CLOSING).endswith(('?', '？', '؟'))


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text, wrapped ones joined; '' for one or more blank ones."""
    lines: list[list[str]] = []
    goes_on = False
    for raw in text.split('\n'):
        line = raw.strip()
        if goes_on and line and not _BULLET.match(line):
            lines[-1].append(line)
        elif line or lines and lines[-1] != ['']:
            lines.append([line])
        goes_on = len(line) in _WRAPPED and not line.rstrip(_CLOSING).endswith(tuple(_ENDS))
    return list(map(' '.join, lines))


@functools.cache
def _abbreviated() -> re.Pattern:
    """Returns a pattern for a title or an initial that is a word by itself."""
    marks = rules.marks()
    titles = 'Sr|Sra|Srs|Dr|Dra|Mr|Mrs|Ms|St|Prof'
    return re.compile(rf'(?:^|[^\w{marks}])(?:{titles}|[^\W\d_a-z]|[A-Z][{marks}]+)$')


def _sentences_of(line: str) -> Iterator[tuple[str, str]]:
    """Yields (what stands before it in the line, sentence) for each sentence."""
    begin = 0
    before = ' '
    for sign in _BOUNDARY.finditer(line):
        # A full stop ends no sentence after a number or an abbreviation, nor before a small letter.
        if sign[0][0] not in _OWN + _UNSPACED:
            after = _OPENING.match(line, sign.end()).end()
            near = line[max(begin, sign.start() - _LOOKED_BACK) : sign.start()]
            goes_on = near.isdigit() or line[after : after + 1].islower()
            if goes_on or _abbreviated().search(near):
                continue
        yield before, line[begin : sign.end()].strip()
        begin = sign.end()
        before = ' ' if sign[0][-1].isspace() else ''
    if line[begin:].strip():
        yield before, line[begin:].strip()


def sentences(lines: list[str]) -> list[Sentence]:
    """Returns the sentences of the lines of a text (`lines_of`), in order."""
    result = []
    for index, line in enumerate(lines):
        own = list(_sentences_of(line))
        paragraph_ends = index + 1 == len(lines) or not lines[index + 1]
        for number, (before, text) in enumerate(own):
            last = number + 1 == len(own)
            result.append(Sentence(text, before if number else '\n', paragraph_ends and last))
    return result


def _join(sentences: list[Sentence]) -> str:
    return ''.join(s.before + s.text for s in sentences).strip()


def _count_words(sentences: list[Sentence]) -> int:
    return sum(s.num_words for s in sentences)


def passages(sentences: list[Sentence], words: int) -> list[list[Sentence]]:
    """Groups sentences into passages of at most so many words, or of one sentence.

    A passage that is half full ends with its paragraph. Passages of fewer than 3 words are left
    out.
    """
    groups: list[list[Sentence]] = []
    room = 0
    for sentence in sentences:
        if sentence.num_words > room:
            groups.append([])
            room = words
        groups[-1].append(sentence)
        room -= sentence.num_words
        if sentence.ends and room <= words // 2:
            room = 0
    return [group for group in groups if _count_words(group) >= _FEWEST_WORDS]


def _beginning(sentences: list[Sentence], words: int) -> str:
    """Returns the passage that begins with the first sentence; '' where it is too short."""
    groups = passages(sentences[:words], words)  # a sentence has a word at least
    if not groups or groups[0][0] is not sentences[0]:
        return ''
    return _join(groups[0])


def spans(text: str, words: int) -> Iterator[tuple[str, str]]:
    """Yields neighbours: the first passage and the second, the third and the fourth, ...

    Neelakantan et al. 2022, arXiv 2201.10005, section 2.1. A text of fewer than two passages is
    halved.
    """
    whole = sentences(lines_of(text))
    half = -(-_count_words(whole) // 2)
    groups = passages(whole, min(words, half))
    for first, second in zip(groups[::2], groups[1::2]):
        yield _join(first), _join(second)


def title(text: str, words: int) -> Iterator[tuple[str, str]]:
    """Yields a heading and the passage after it, which ends before the next heading.

    As Wang et al. 2022, arXiv 2212.03533, section 3.1, take title and passage. A heading is a line
    that begins with #, or one at the beginning of a paragraph that has at most 8 words, does not
    end like a sentence and states nothing.
    """
    lines = lines_of(text)
    headings = []
    for index, line in enumerate(lines):
        begins = index == 0 or not lines[index - 1]
        if line.startswith('#') or begins and _names(line, *lines[index + 1 : index + 2]):
            headings.append(index)
    for index, stop in zip(headings, [*headings[1:], len(lines)]):
        name = lines[index].lstrip('#').strip()
        section = lines[index + 1 : min(stop, index + 1 + 2 * words)]
        passage = _beginning(sentences(section), words)
        if passage and any(map(str.isalnum, name)):
            yield name, passage


def _names(line: str, following: str = '') -> bool:
    """Returns whether a line is short, and names something without a statement about it."""
    return (
        len(line.split()) <= _HEADING_WORDS
        and len(rules.pieces(line)) <= 2 * _HEADING_WORDS
        and not line.endswith(tuple(_ENDS))
        and not _STATES.search(line)
        and not following[:1].islower()
    )


def question(text: str, words: int) -> Iterator[tuple[str, str]]:
    """Yields a sentence that asks and what follows it, up to the next one that asks."""
    whole = sentences(lines_of(text))
    for index, sentence in enumerate(whole[:-1]):
        if not sentence.asks or sentence.num_words < _FEWEST_WORDS:
            continue
        following = whole[index + 1 : index + 1 + words]
        stop = next((n for n, other in enumerate(following) if other.asks), len(following))
        passage = _beginning(following[:stop], words)
        if passage:
            yield sentence.text, passage


def _share(text: str, words: int, share: tuple[int, int]) -> Iterator[tuple[list[Sentence], int]]:
    """Yields the passages that fall to one kind, each with a number drawn for it.

    `share`: (i, n) for the i-th of n kinds.
    """
    kind, num_kinds = share
    for passage in passages(sentences(lines_of(text)), words):
        digest = hashlib.sha256(rules.plain(_join(passage)).encode()).digest()
        if digest[8] % num_kinds == kind:
            yield passage, int.from_bytes(digest[:8], 'big')


def cloze(text: str, words: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str]]:
    """Yields a sentence of a passage, and the passage without it (the inverse cloze task).

    Lee et al. 2019, arXiv 1906.00300, section 4: in one of ten it stays there, so that words in
    common count too.
    """
    for passage, drawn in _share(text, words, share):
        able = [index for index, s in enumerate(passage) if s.num_words >= _FEWEST_WORDS]
        if not able or len(passage) == 1:
            continue
        index = able[drawn % len(able)]
        stays = drawn // len(able) % 1000 < 1000 * _SHARE_KEPT
        rest = passage if stays else passage[:index] + passage[index + 1 :]
        if _count_words(rest) >= _FEWEST_WORDS:
            yield passage[index].text, _join(rest)


def crops(text: str, words: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str]]:
    """Yields two stretches of a passage, drawn apart: a short one, and at least half of it.

    Independent cropping, Izacard et al. 2022, arXiv 2112.09118, section 3.1: they have words in
    common or not. The short one is as short as queries are.
    """
    for passage, drawn in _share(text, words, share):
        whole = _join(passage)
        places = rules.places(whole)
        if len(places) < _FEWEST_WORDS:  # signs that were a word by themselves join the next
            continue
        stretches = []
        for fewest, most in (
            (_FEWEST_WORDS, max(_FEWEST_WORDS, len(places) // 2)),
            (-(-len(places) // 2), len(places)),
        ):
            drawn, extra = divmod(drawn, most - fewest + 1)
            drawn, begin = divmod(drawn, len(places) - fewest - extra + 1)
            first_character = places[begin][0]
            end = places[begin + fewest + extra - 1][1]
            stretches.append(' '.join(whole[first_character:end].split()))
        yield stretches[0], stretches[1]


def same(text: str, words: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str]]:
    """Yields each passage and itself: the vectors differ by dropout alone.

    SimCSE, Gao et al. 2021, arXiv 2104.08821, section 3. A model without `config.model.dropout`
    has no such difference.
    """
    for passage, _ in _share(text, words, share):
        yield _join(passage), _join(passage)


MAKERS = {make.__name__: make for make in (spans, title, question, cloze, crops, same)}
_INSIDE = ('cloze', 'crops', 'same')  # kinds that are made inside of a passage


def make_pairs(kinds: list[str], text: str, words: int) -> Iterator[tuple[str, str]]:
    """Yields the pairs of several kinds.

    Of the kinds that are made inside of a passage each passage gives one: two would be near copies,
    and no negatives of each other.
    """
    inside = [kind for kind in kinds if kind in _INSIDE]
    for kind in kinds:
        if kind in inside:
            yield from MAKERS[kind](text, words, (inside.index(kind), len(inside)))
        else:
            yield from MAKERS[kind](text, words)
