"""Words that a query and a chunk share, scored by BM25.

That is bm25s (Lù 2024, arXiv 2407.03618), its scores memory-mapped.
"""

import array
import logging
import pathlib
import re
from collections.abc import Iterable

import bm25s
import numpy as np
import Stemmer

from data import words as rules
from data.pairs import hard_negatives
from model.errors import did_you_mean
from runtime.errors import RunError

logging.getLogger('bm25s').setLevel(logging.WARNING)
# The words of indexes by the first rules, in lower case.
_FIRST_RULES = re.compile(r'[^\W_]+')


class Words:
    """The terms of texts (data/words.py), stemmed (Snowball) for a language, or not ('none').

    Args:
      language: whose endings of words do not count.
      number: of the rules by which words are cut; below `RULES` only to search in what they made.

    Raises:
      RunError: it knows no such language.
    """

    def __init__(self, language: str, number: int = rules.RULES):
        known = ['none', *Stemmer.algorithms()]
        if language not in known:
            raise RunError(f'--language is {language!r}: {did_you_mean(language, known)}')
        self._number = number
        self._turkish = language == 'turkish'
        self._stem = None if language == 'none' else Stemmer.Stemmer(language).stemWord

    def __call__(self, text: str) -> list[str]:
        """Returns the terms that a text is found by, in order."""
        return list(map(self.stem, self.cut(text)))

    def query_terms(self, text: str) -> list[str]:
        """Returns the terms that a query asks for, in order; none: it has no words."""
        if self._number == 1:
            return self(text)
        return list(map(self.stem, rules.asked(text, turkish=self._turkish)))

    def cut(self, text: str) -> list[str]:
        """Returns the terms of a text before they are stemmed."""
        if self._number == 1:
            return _FIRST_RULES.findall(text.lower())
        return rules.terms(text, turkish=self._turkish)

    def stem(self, word: str) -> str:
        """Returns a term without its ending, where endings do not count."""
        stem = self._stem(word) if self._stem else word
        return stem.replace('ı', 'i') if self._turkish and self._number > 1 else stem


def closeness(words: list[str], wanted: set[str]) -> tuple[int, int, int]:
    """Returns how well a passage shows what was asked for; larger is better.

    Three numbers: the different words that it has of those wanted, minus the words that the
    shortest stretch with all of them takes, minus the words before that.
    """
    last: dict[str, int] = {}  # place of each wanted word that was seen
    best = (0, 0, 0)
    for place, word in enumerate(words):
        if word in wanted:
            last[word] = place
            first = min(last.values())
            best = max(best, (len(last), first - place - 1, -first))
    return best


def build(
    texts: Iterable[str], ids: np.ndarray, words: Words, folder: pathlib.Path
) -> dict[str, int]:
    """Writes the scores of chunks with these `ids` [N] into a folder.

    Returns the number of each term.
    """
    folder.mkdir()
    np.save(folder / 'ids.npy', ids, allow_pickle=False)
    if not len(ids):
        return {}
    tokenizer = bm25s.tokenization.Tokenizer(
        lower=False, splitter=words.cut, stopwords=None, stemmer=words.stem
    )
    rows = [array.array('I', row) for row in tokenizer.streaming_tokenize(texts)]
    terms = tokenizer.get_vocab_dict()
    scores = bm25s.BM25(csc_backend='scipy')
    scores.index((rows, terms), show_progress=False)
    scores.vocab_dict = {}  # terms are looked up in the database
    scores.save(folder, show_progress=False)
    return terms


class Lexical:
    """Scores that `build` wrote. `ids` [N] int64: of the chunks, ascending."""

    def __init__(self, folder: pathlib.Path):
        self.ids = np.load(folder / 'ids.npy', mmap_mode='r', allow_pickle=False)
        self.scores = None
        if len(self.ids):
            self.scores = bm25s.BM25.load(folder, mmap=True, load_vocab=False)

    def nearest(
        self, terms: list[int], count: int, allowed: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """Returns (id, score) of the best chunks that have one of the terms, best first.

        Of equal ones the lower id comes first. A term that is there twice counts twice.

        Args:
          terms: numbers of terms.
          count: chunks at most.
          allowed: ids, ascending, of the only chunks that count; None: all count.
        """
        if not terms or self.scores is None:
            return []
        scores = self.scores.get_scores_from_ids(terms)
        if allowed is not None:
            is_allowed = np.zeros(len(scores), bool)
            is_allowed[np.searchsorted(self.ids, allowed)] = True
            scores[~is_allowed] = 0
        return [
            (int(self.ids[i]), float(scores[i]))
            for i in hard_negatives.best(scores, scores > 0, count)
        ]
