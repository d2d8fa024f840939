"""Words that a query and a chunk share: BM25 by bm25s (Lù 2024, arXiv 2407.03618), its scores memory-mapped."""

import array
import logging
import pathlib
import re
from collections.abc import Iterable

import bm25s
import numpy as np
import Stemmer

from data import mining
from model.errors import nearest
from train.errors import RunError

logging.getLogger('bm25s').setLevel(logging.WARNING)
_WORD = re.compile(r'[^\W_]+')  # of read_csv two words


class Words:
    """The terms of texts: lower case, stemmed (Snowball) for a language, or not ('none'). Raises RunError where it knows no such language."""

    def __init__(self, language: str):
        if language not in (known := ['none', *Stemmer.algorithms()]):
            raise RunError(f'--language is {language!r}: {nearest(language, known)}')
        self.stem = None if language == 'none' else Stemmer.Stemmer(language).stemWord

    def __call__(self, text: str) -> list[str]:
        return [self.stem(word) if self.stem else word for word in _WORD.findall(text.lower())]


def closeness(words: list[str], wanted: set[str]) -> tuple[int, int, int]:
    """How well a passage shows what was asked for, larger is better: (different words that it has of those wanted, minus the words that the shortest
    stretch with all of them takes, minus the words before that)."""
    last: dict[str, int] = {}
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
    """Writes the scores of chunks with these `ids` [N] into a folder. Returns the number of each term."""
    folder.mkdir()
    np.save(folder / 'ids.npy', ids, allow_pickle=False)
    if not len(ids):
        return {}
    tokenizer = bm25s.tokenization.Tokenizer(
        splitter=_WORD.findall, stopwords=None, stemmer=words.stem
    )
    found = [array.array('I', row) for row in tokenizer.streaming_tokenize(texts)]
    terms = tokenizer.get_vocab_dict()
    scores = bm25s.BM25(csc_backend='scipy')
    scores.index((found, terms), show_progress=False)
    scores.vocab_dict = {}  # terms are looked up in the database
    scores.save(folder, show_progress=False)
    return terms


class Lexical:
    """Scores that `build` wrote. `ids` [N] int64: of the chunks, ascending."""

    def __init__(self, folder: pathlib.Path):
        self.ids = np.load(folder / 'ids.npy', mmap_mode='r', allow_pickle=False)
        self.scores = (
            bm25s.BM25.load(folder, mmap=True, load_vocab=False) if len(self.ids) else None
        )

    def nearest(
        self, terms: list[int], count: int, allowed: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """(id, score) of the best chunks that have one of the terms, best first, of equal ones the lower id first; of those `allowed` (ids, ascending)
        only. A term that is there twice counts twice."""
        if not terms or self.scores is None:
            return []
        scores = self.scores.get_scores_from_ids(terms)
        if allowed is not None:
            kept = np.zeros(len(scores), bool)
            kept[np.searchsorted(self.ids, allowed)] = True
            scores[~kept] = 0
        return [
            (int(self.ids[i]), float(scores[i])) for i in mining.best(scores, scores > 0, count)
        ]
