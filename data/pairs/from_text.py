"""Pairs made of texts without labels: each kind is a function of a text and of the words that a passage may have -> (query, positive) pairs.

Nothing in them is drawn but by hash: the same text gives the same pairs. A word is what stands
between white space, and in scripts without spaces a letter (data/words.py: pieces); a sentence ends
at . ! ? … and what other scripts have for them, or with its line, where that is not a line of
wrapped text.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from data import words as rules

_LEAST = 3  # words of a sentence or passage; of less, no model can tell what belongs to it
_TITLE = 8  # words of a heading at most; letters in scripts without spaces: twice as many
_KEPT = 0.1  # share of cloze pairs whose sentence stays where it was
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


class Sentence(NamedTuple):
    """`before`: what stands between it and the one before it in its text; `ends`: it is the last of a paragraph."""

    text: str
    before: str
    ends: bool

    @property
    def words(self) -> int:
        return len(rules.pieces(self.text))

    @property
    def asks(self) -> bool:
        return self.text.rstrip(_CLOSING).endswith(('?', '？', '؟'))


def lines_of(text: str) -> list[str]:
    """The lines of a text, wrapped ones joined; of several blank ones, one ''."""
    lines: list[list[str]] = []
    goes_on = False
    for line in (raw.strip() for raw in text.split('\n')):
        if goes_on and line and not _BULLET.match(line):
            lines[-1].append(line)
        elif line or lines and lines[-1] != ['']:
            lines.append([line])
        goes_on = len(line) in _WRAPPED and not line.rstrip(_CLOSING).endswith(tuple(_ENDS))
    return list(map(' '.join, lines))


@functools.cache
def _abbreviated() -> re.Pattern:
    """A title, or an initial, before which there is no letter and no mark of one."""
    marks = rules.marks()
    known = 'Sr|Sra|Srs|Dr|Dra|Mr|Mrs|Ms|St|Prof'
    return re.compile(rf'(?:^|[^\w{marks}])(?:{known}|[^\W\d_a-z]|[A-Z][{marks}]+)$')


def _sentences_of(line: str) -> Iterator[tuple[str, str]]:
    """(what stands before it in the line, sentence) of each."""
    begin, before = 0, ' '
    for found in _BOUNDARY.finditer(line):
        after, near = (
            _OPENING.match(line, found.end()).end(),
            line[max(begin, found.start() - 9) : found.start()],
        )
        if found[0][0] in _OWN + _UNSPACED or not (
            near.isdigit() or line[after : after + 1].islower() or _abbreviated().search(near)
        ):
            yield before, line[begin : found.end()].strip()
            begin, before = found.end(), ' ' * found[0][-1].isspace()
    if line[begin:].strip():
        yield before, line[begin:].strip()


def sentences(lines: list[str]) -> list[Sentence]:
    """The sentences of the lines of a text (`lines_of`), in order."""
    found = []
    for i, line in enumerate(lines):
        own = list(_sentences_of(line))
        closes = i + 1 == len(lines) or not lines[i + 1]
        found += [
            Sentence(s, before if n else '\n', closes and n + 1 == len(own))
            for n, (before, s) in enumerate(own)
        ]
    return found


def _joined(some: list[Sentence]) -> str:
    return ''.join(s.before + s.text for s in some).strip()


def passages(some: list[Sentence], words: int) -> list[list[Sentence]]:
    """Sentences in passages of at most so many words, or of one sentence; one that is half full ends with its paragraph."""
    found, room = [], 0
    for s in some:
        if s.words > room:
            found.append([])
            room = words
        found[-1].append(s)
        room -= s.words
        if s.ends and room <= words // 2:
            room = 0
    return [p for p in found if sum(s.words for s in p) >= _LEAST]


def _beginning(some: list[Sentence], words: int) -> str:
    """What a passage that begins here says; '' where it is too little."""
    found = passages(some[:words], words)  # a sentence has a word at least
    return _joined(found[0]) if found and found[0][0] is some[0] else ''


def spans(text: str, words: int) -> Iterator[tuple[str, str]]:
    """Neighbours: the first passage and the second, the third and the fourth, ... (Neelakantan et al. 2022, arXiv 2201.10005, section 2.1).
    A text of fewer than two passages is halved."""
    some = sentences(lines_of(text))
    found = passages(some, min(words, -(-sum(s.words for s in some) // 2)))
    yield from ((_joined(a), _joined(b)) for a, b in zip(found[::2], found[1::2]))


def title(text: str, words: int) -> Iterator[tuple[str, str]]:
    """A heading and the passage after it (as Wang et al. 2022, arXiv 2212.03533, section 3.1, take title and passage). A heading is a line that
    begins with #, or one at the beginning of a paragraph that has at most 8 words, does not end like a sentence and states nothing. The
    passage ends before the next heading."""
    lines = lines_of(text)
    headings = [
        i
        for i, line in enumerate(lines)
        if line.startswith('#')
        or (i == 0 or not lines[i - 1])
        and _names(line, *lines[i + 1 : i + 2])
    ]
    for i, stop in zip(headings, [*headings[1:], len(lines)]):
        name, after = (
            lines[i].lstrip('#').strip(),
            _beginning(sentences(lines[i + 1 : min(stop, i + 1 + 2 * words)]), words),
        )
        if after and any(map(str.isalnum, name)):
            yield name, after


def _names(line: str, following: str = '') -> bool:
    return (
        len(line.split()) <= _TITLE
        and len(rules.pieces(line)) <= 2 * _TITLE
        and not line.endswith(tuple(_ENDS))
        and not _STATES.search(line)
        and not following[:1].islower()
    )


def question(text: str, words: int) -> Iterator[tuple[str, str]]:
    """A sentence that asks and what follows it, up to the next one that asks."""
    some = sentences(lines_of(text))
    for i, s in enumerate(some[:-1]):
        if s.asks and s.words >= _LEAST:
            following = some[i + 1 : i + 1 + words]
            stop = next((n for n, other in enumerate(following) if other.asks), len(following))
            after = _beginning(following[:stop], words)
            if after:
                yield s.text, after


def _share(text: str, words: int, share: tuple[int, int]) -> Iterator[tuple[list[Sentence], int]]:
    """The passages of a text, each with a number drawn for it: of `share` (i, n) those that fall to the i-th of n kinds."""
    for passage in passages(sentences(lines_of(text)), words):
        drawn = hashlib.sha256(rules.plain(_joined(passage)).encode()).digest()
        if drawn[8] % share[1] == share[0]:
            yield passage, int.from_bytes(drawn[:8], 'big')


def cloze(text: str, words: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str]]:
    """The inverse cloze task (Lee et al. 2019, arXiv 1906.00300, section 4): a sentence of a passage, and the passage without it; in one of
    ten it stays there, so that words in common count too."""
    for passage, drawn in _share(text, words, share):
        able = [i for i, s in enumerate(passage) if s.words >= _LEAST]
        if able and len(passage) > 1:
            i, stays = able[drawn % len(able)], drawn // len(able) % 1000 < 1000 * _KEPT
            rest = passage if stays else passage[:i] + passage[i + 1 :]
            if sum(s.words for s in rest) >= _LEAST:
                yield passage[i].text, _joined(rest)


def crops(text: str, words: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str]]:
    """Two stretches of a passage, drawn apart, so that they have words in common or not (independent cropping, Izacard et al. 2022, arXiv
    2112.09118, section 3.1): a short one, as queries are, and one of at least half of it."""
    for passage, drawn in _share(text, words, share):
        text, found = _joined(passage), []
        whole = rules.places(text)
        for least, most in (
            (_LEAST, max(_LEAST, len(whole) // 2)),
            (-(-len(whole) // 2), len(whole)),
        ):
            drawn, more = divmod(drawn, most - least + 1)
            drawn, begin = divmod(drawn, len(whole) - least - more + 1)
            first, last = whole[begin][0], whole[begin + least + more - 1][1]
            found.append(' '.join(text[first:last].split()))
        yield found[0], found[1]


def same(text: str, words: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[str, str]]:
    """Each passage and itself: the vectors differ by dropout alone (SimCSE, Gao et al. 2021, arXiv 2104.08821, section 3), which a model
    without `config.model.dropout` does not have."""
    for passage, _ in _share(text, words, share):
        yield _joined(passage), _joined(passage)


def pairs(kinds: list[str], text: str, words: int) -> Iterator[tuple[str, str]]:
    """Pairs of several kinds. Of those that are made inside a passage each passage gives one: two would be near copies, and no negatives."""
    inside = [kind for kind in kinds if kind in ('cloze', 'crops', 'same')]
    for kind in kinds:
        yield from (
            MADE[kind](text, words, (inside.index(kind), len(inside)))
            if kind in inside
            else MADE[kind](text, words)
        )


MADE = {made.__name__: made for made in (spans, title, question, cloze, crops, same)}
