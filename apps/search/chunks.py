"""Texts are cut into chunks of some tokens, and chunks into passages.

A chunk ends with a paragraph, else a sentence, else a word. A cut has one of four strengths: 3
after a paragraph, 2 after a line or sentence, 1 after a word, 0 inside a word, where nothing else
is left.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

# A word with the space before it; what is longer than 24 characters without a space (a URL, base64,
# or text of a script without spaces) is several.
_WORD = re.compile(r'\s*+(?:[^\s。！？]{1,24}+[。！？]*+|[。！？]++)')
_SENTENCE_END = re.compile(r'[.!?…:;][\'")\]»”’]*$')
_REMEMBERED = 500_000  # words whose tokens are remembered
# A chunk also holds two marks, and a space that encoding puts before a text.
_EXTRA_TOKENS = 3


class Splitter:
    """Cuts texts into chunks.

    Args:
      encode: words -> the tokens of each.
      most: tokens of a chunk, with the two marks round it.
      overlap: tokens at the end of a chunk that the next begins with, at most: whole sentences
        where they fit.
    """

    def __init__(
        self, encode: Callable[[list[str]], Sequence[Sequence[int]]], most: int, overlap: int = 0
    ):
        self._encode = encode
        self._most = most - _EXTRA_TOKENS
        self._overlap = overlap
        self._codes: dict[str, int] = {}  # of each word: what `_learn` packs into a number

    def chunks(self, text: str) -> list[tuple[int, int]]:
        """Returns (first character, end) of each chunk, without space around it."""
        begins, ends, tokens, strengths = self._words(text)
        before = np.concatenate([[0], np.cumsum(tokens)])  # tokens before each word, and in all
        # Words after which a cut has at least this strength, the strongest first.
        cuts = [np.flatnonzero(strengths >= least) + 1 for least in (3, 2, 1)]
        chunks: list[tuple[int, int]] = []
        first = 0
        while first < len(ends):
            last = self._find_end(before, cuts, first)
            chunks.append((int(begins[first]), int(ends[last - 1])))
            if last >= len(ends):
                break
            first = self._find_next_begin(before, cuts, first, last)
        return chunks

    def _find_end(self, before: np.ndarray, cuts: list[np.ndarray], first: int) -> int:
        """Returns the word before which the chunk that begins with word `first` ends."""
        fitting = int(np.searchsorted(before, before[first] + self._most, 'right')) - 1
        last = max(first + 1, fitting)
        if last >= len(before) - 1:
            return last

        # The end of a paragraph or sentence counts only where it leaves half a chunk at least.
        half = int(np.searchsorted(before, before[first] + self._most / 2))
        for least, places in zip((half, half, first), cuts):
            place = places[np.searchsorted(places, last, 'right') - 1] if len(places) else 0
            if least < place <= last:
                return int(place)
        return last

    def _find_next_begin(
        self, before: np.ndarray, cuts: list[np.ndarray], first: int, last: int
    ) -> int:
        """Returns the word that the chunk after one of words `first` to `last` begins with."""
        back = int(np.searchsorted(before, before[last] - self._overlap))
        sentence = _first_at_least(cuts[1], back, last)
        word = _first_at_least(cuts[2], back, last)
        return max(first + 1, min(last, sentence if sentence < last else word))

    def _words(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns four arrays over the words of a text.

        Where each begins, after its space; where it ends; its tokens; the strength of a cut after
        it.
        """
        words = _WORD.findall(text.rstrip())
        self._learn(words)
        codes = np.fromiter(map(self._codes.__getitem__, words), np.int64, len(words))
        ends = np.fromiter(itertools.accumulate(map(len, words)), np.int64, len(words))
        sizes = np.diff(ends, prepend=0)
        space = codes & 3
        end = codes >> 2 & 3
        follows = np.append(space[1:], 3)[: len(words)]
        is_sentence = (end == 2) | (end == 1) & (follows > 0)
        strengths = np.where(is_sentence, np.maximum(follows, 2), follows)
        return ends - sizes + (codes >> 4 & 0xFFFF), ends, codes >> 20, strengths

    def _learn(self, words: list[str]) -> None:
        """Packs what is known of each word into a number.

        That is its tokens, the length and the strength of the space before it, and the kind of its
        end. Tokens never go over a space, so that the tokens of a text are those of its words, and
        most words come again and again.
        """
        if len(self._codes) > _REMEMBERED:
            self._codes.clear()
        new = list({word for word in words if word not in self._codes})
        for word, ids in zip(new, self._encode(new)):
            body = word.lstrip()
            space = word[: len(word) - len(body)]
            code = len(ids) << 20 | min(len(space), 0xFFFF) << 4
            self._codes[word] = code | _end_kind(body) << 2 | _space_strength(space)


def _space_strength(space: str) -> int:
    """Returns the strength of a cut in this space: 3 a paragraph's, 2 a line's, 1 a word's."""
    if space.count('\n') > 1:
        return 3
    if '\n' in space:
        return 2
    return 1 if space else 0


def _end_kind(word: str) -> int:
    """Returns 2 where a word always ends a sentence, 1 where it does before space, else 0."""
    if word[-1] in '。！？':
        return 2
    return 1 if _SENTENCE_END.search(word) else 0


def _first_at_least(places: np.ndarray, least: int, default: int) -> int:
    """Returns the first of the ascending places from `least` on, `default` where there is none."""
    if len(places) and least <= places[-1]:
        return int(places[np.searchsorted(places, least)])
    return default


def passages(text: str, most: int) -> list[tuple[int, int]]:
    """Returns (first character, end) of the windows of a chunk.

    From the begin of each sentence on as many whole ones as fit into `most` words, or one.
    """
    begins, ends, _, strengths = Splitter(lambda words: [(0,)] * len(words), most)._words(text)
    cuts = np.unique([0, *(np.flatnonzero(strengths >= 2) + 1), len(ends)])
    fitting = np.searchsorted(cuts, cuts[:-1] + most, 'right') - 1
    lasts = np.maximum(fitting, np.arange(1, len(cuts)))
    return [
        (int(begins[first]), int(ends[cuts[last] - 1])) for first, last in zip(cuts[:-1], lasts)
    ]
