"""Finds documents without a trained model, by words that are the same (BM25, TF-IDF).

Scores come as rows [documents], one a query.
"""

import functools
import logging
from collections.abc import Iterator

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN, STOPWORDS_PORTUGUESE
from scipy import sparse

from data import words as rules

logging.getLogger('bm25s').setLevel(logging.WARNING)  # it tells of each index
STOP_WORDS = {'english': STOPWORDS_EN, 'portuguese': STOPWORDS_PORTUGUESE}


def language(texts: list[str]) -> str:
    """Returns the one of STOP_WORDS whose stop words are most frequent in the texts."""
    every = [word for text in words(texts) for word in text]
    return max(STOP_WORDS, key=lambda name: sum(word in STOP_WORDS[name] for word in every))


def words(texts: list[str], stemmed: str = '') -> list[list[str]]:
    """Returns the words (data/words.py, of two characters at least) of each text.

    Of scripts without spaces each two letters that are neighbours. `stemmed`: without the stop
    words of that language, and each cut to its stem (Snowball).
    """
    stop = set(STOP_WORDS[stemmed] if stemmed else ())
    lists = [
        [word for word in rules.asked(text, joined=True) if len(word) > 1 and word not in stop]
        for text in texts
    ]
    if stemmed:
        stem = functools.cache(Stemmer.Stemmer(stemmed).stemWord)
        lists = [list(map(stem, text)) for text in lists]
    return lists


def bm25(queries: list[list[str]], documents: list[list[str]]) -> Iterator[np.ndarray]:
    """Yields scores of BM25 (Robertson; Lucene's form, k1 = 1.5, b = 0.75); 0: no common word."""
    index = bm25s.BM25()
    # A document without words gets an empty one: the index divides by the length of a text.
    index.index([text or [''] for text in documents], show_progress=False)
    return (index.get_scores(query) if query else np.zeros(len(documents)) for query in queries)


def tfidf(documents: list[list[str]], *others: list[list[str]]) -> list[sparse.csr_array]:
    """Returns vectors of length 1, [texts, words], of the documents and of each list of others.

    An entry is how often a word is there times log((1 + N) / (1 + n)) + 1, n of the N `documents`
    having it. Words of the others that are in no document count for nothing.
    """
    place: dict[str, int] = {}
    for word in (word for text in documents for word in text):
        place.setdefault(word, len(place))

    def count(texts: list[list[str]]) -> sparse.csr_array:
        rows = [[place[word] for word in text if word in place] for text in texts]
        starts = np.cumsum([0, *map(len, rows)])
        columns = np.array([i for row in rows for i in row], np.int64)
        shape = (len(texts), len(place))
        counts = sparse.csr_array((np.ones(starts[-1]), columns, starts), shape)
        counts.sum_duplicates()
        return counts

    matrices = [count(texts) for texts in (documents, *others)]
    having = np.bincount(matrices[0].indices, minlength=len(place))
    weight = sparse.diags_array(np.log((1 + len(documents)) / (1 + having)) + 1)
    return [_unit(matrix @ weight) for matrix in matrices]


def _unit(matrix: sparse.csr_array) -> sparse.csr_array:
    lengths = np.sqrt((matrix * matrix).sum(1))
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(lengths, 1e-12)) @ matrix)


def cosines(queries: sparse.csr_array, documents: sparse.csr_array) -> Iterator[np.ndarray]:
    """Yields the products of each query with all documents, [documents]."""
    turned = sparse.csc_array(documents.T)
    return (np.asarray((queries[[row]] @ turned).todense())[0] for row in range(queries.shape[0]))


def alike(first: sparse.csr_array, second: sparse.csr_array) -> np.ndarray:
    """Returns the product of each row with the same row of the other, [N]."""
    return np.asarray((first * second).sum(1))
