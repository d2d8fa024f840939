"""Texts are cut into chunks of some tokens at the ends of paragraphs, else of sentences, else of words; and chunks into passages.

A cut has one of four strengths: 3 after a paragraph, 2 after a line or sentence, 1 after a word, 0 inside a word, where nothing else is left.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

# A word with the space before it; what is longer than 24 characters without a space (a URL, base64, or text of a script without spaces) is several.
_WORD = re.compile(r'\s*+(?:[^\s。！？]{1,24}+[。！？]*+|[。！？]++)')
_SENTENCE = re.compile(r'[.!?…:;][\'")\]»”’]*$')
_KEPT = 500_000  # words whose tokens are remembered


class Splitter:
    """Cuts texts.

    Args:
      encode: words -> the tokens of each.
      most: tokens of a chunk, with the two marks round it.
      overlap: tokens at the end of a chunk that the next begins with, at most: whole sentences where they fit.
    """

    def __init__(
        self, encode: Callable[[list[str]], Sequence[Sequence[int]]], most: int, overlap: int = 0
    ):
        self._encode, self._most, self._overlap = (
            encode,
            most - 3,
            overlap,
        )  # two marks, and a space that encoding puts before a text
        self._known: dict[str, int] = {}

    def chunks(self, text: str) -> list[tuple[int, int]]:
        """(first character, end) of each chunk, without space around it."""
        begins, ends, tokens, strengths = self._words(text)
        before = np.concatenate([[0], np.cumsum(tokens)])  # tokens before each word, and in all
        cuts = [np.flatnonzero(strengths >= least) + 1 for least in (3, 2, 1)]
        found, first = [], 0
        while first < len(ends):
            last = max(
                first + 1, int(np.searchsorted(before, before[first] + self._most, 'right')) - 1
            )
            if last < len(ends):
                half = int(np.searchsorted(before, before[first] + self._most / 2))
                for least, places in zip((half, half, first), cuts):
                    place = places[np.searchsorted(places, last, 'right') - 1] if len(places) else 0
                    if least < place <= last:
                        last = int(place)
                        break
            found.append((int(begins[first]), int(ends[last - 1])))
            if last >= len(ends):
                break
            back = int(np.searchsorted(before, before[last] - self._overlap))
            sentence = (
                cuts[1][np.searchsorted(cuts[1], back)]
                if len(cuts[1]) and back <= cuts[1][-1]
                else last
            )
            word = (
                cuts[2][np.searchsorted(cuts[2], back)]
                if len(cuts[2]) and back <= cuts[2][-1]
                else last
            )
            first = max(first + 1, min(last, int(sentence if sentence < last else word)))
        return found

    def _words(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where each word begins, after its space, and ends; its tokens; the strength of a cut after it."""
        words = _WORD.findall(text.rstrip())
        self._learn(words)
        codes = np.fromiter(map(self._known.__getitem__, words), np.int64, len(words))
        ends = np.fromiter(itertools.accumulate(map(len, words)), np.int64, len(words))
        sizes = np.diff(ends, prepend=0)
        space, end = codes & 3, codes >> 2 & 3
        follows = np.append(space[1:], 3)[: len(words)]
        strengths = np.where(
            (end == 2) | (end == 1) & (follows > 0), np.maximum(follows, 2), follows
        )
        return ends - sizes + (codes >> 4 & 0xFFFF), ends, codes >> 20, strengths

    def _learn(self, words: list[str]) -> None:
        """Tokens never go over a space, so that the tokens of a text are those of its words, and most words come again and again."""
        if len(self._known) > _KEPT:
            self._known.clear()
        new = list({word for word in words if word not in self._known})
        for word, ids in zip(new, self._encode(new)):
            body = word.lstrip()
            space = word[: len(word) - len(body)]
            strength = 3 if space.count('\n') > 1 else 2 if '\n' in space else 1 if space else 0
            end = 2 if body[-1] in '。！？' else 1 if _SENTENCE.search(body) else 0
            self._known[word] = len(ids) << 20 | min(len(space), 0xFFFF) << 4 | end << 2 | strength


def passages(text: str, most: int) -> list[tuple[int, int]]:
    """(first character, end) of the windows of a chunk: from the begin of each sentence on as many whole ones as fit into `most` words, or one."""
    begins, ends, _, strengths = Splitter(lambda words: [(0,)] * len(words), most)._words(text)
    cuts = np.unique([0, *(np.flatnonzero(strengths >= 2) + 1), len(ends)])
    lasts = np.maximum(
        np.searchsorted(cuts, cuts[:-1] + most, 'right') - 1, np.arange(1, len(cuts))
    )
    return [
        (int(begins[first]), int(ends[cuts[last] - 1])) for first, last in zip(cuts[:-1], lasts)
    ]
