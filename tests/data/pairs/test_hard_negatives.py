"""Hard negatives against a plain loop over all texts."""

import json
import math
import re
import unicodedata

import numpy as np
import pytest

from data.pairs import hard_negatives, read as read_pairs
from data.pairs.read import Pair
from data.records import DataError


def world(seed, num_queries=30, num_texts=200, size=8):
    rng = np.random.default_rng(seed)

    def unit(shape):
        vectors = rng.normal(size=shape)
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    queries = unit((num_queries, size))
    texts = unit((num_texts, size))
    texts[50:60] = texts[40]  # of equal texts the lower number comes first
    positives = [rng.choice(num_texts, rng.integers(1, 4), replace=False).tolist() for _ in queries]
    barred = [rng.choice(num_texts, rng.integers(0, 3), replace=False).tolist() for _ in queries]
    return queries, texts, positives, barred


@pytest.mark.parametrize('margin', [1.0, 0.95, 0.6])
@pytest.mark.parametrize('together', [1, 450, 1 << 24])
def test_negatives_by_vectors(monkeypatch, margin, together):
    """Catches a positive or a barred text among the negatives, one above the margin, a nearer one
    left out, and blocks that lose queries."""
    monkeypatch.setattr(hard_negatives, '_SCORES_AT_A_TIME', together)
    queries, texts, positives, barred = world(0)
    negatives = hard_negatives.by_vectors(queries, texts, positives, barred, 5, margin)
    assert (
        len(negatives) == 30
        and any(len(f) == 5 for f in negatives)
        and (margin == 1 or any(len(f) < 5 for f in negatives))
    )
    below = 0
    for query, own, other, ids in zip(queries, positives, barred, negatives):
        scores = texts @ query
        least = min(scores[i] for i in own)
        below += least < 0
        allowed = [
            i
            for i in range(200)
            if i not in own
            and i not in other
            and scores[i] < (margin * least if least > 0 else least * (2 - margin))
        ]
        assert ids.tolist() == sorted(allowed, key=lambda i: (-scores[i], i))[:5]
    assert 0 < below < 30


def test_margin_keeps_what_is_too_near_out():
    """A control: without the margin, a text that nobody marked and that is the positive itself
    becomes its negative."""
    queries = np.eye(3, dtype=np.float32)[:1]
    texts = np.array(
        [[0.8, 0.6, 0], [0.8, 0.6, 0], [0.78, 0, 0.63], [0.7, 0.7, 0], [0, 0, 1]], np.float32
    )

    def mined(margin):
        return hard_negatives.by_vectors(queries, texts, [[0]], [[]], 9, margin)[0].tolist()

    assert mined(0.95) == [3, 4] and mined(1.0) == [2, 3, 4] and mined(0.5) == [4]


def test_negatives_by_words():
    """Catches an answer, the query itself or a text without a word in common among the negatives,
    and an order that is not that of BM25 (Robertson and Zaragoza 2009, with the inverse document
    frequency of Lucene; k1 1.5, b 0.75)."""
    texts = [
        'A capital do Peru é Lima.',
        'A moeda do Peru é o sol.',
        'Qual é a capital do Peru?',
        'Nothing here.',
        'O Peru.',
        'A capital do Chile',
        '...',
        'a b',
    ]
    words = [re.findall(r'\w+', t.lower()) for t in texts]

    def idf(word):
        count = sum(word in w for w in words)
        return math.log(1 + (len(texts) - count + 0.5) / (count + 0.5))

    def long(w):
        return 1.5 * (0.25 + 0.75 * len(w) / (sum(map(len, words)) / len(texts)))

    def score(query, w):
        return sum(
            idf(word) * w.count(word) / (w.count(word) + long(w))
            for word in re.findall(r'\w+', query.lower())
            if word in w
        )

    queries = ['Qual é a capital do Peru?', 'sol', '!', 'B', 'Peru']
    positives = [[0], [1], [3], [0], [2]]
    barred = [[2], [], [], [], []]
    for count in (1, 2, 9):
        for query, own, other, ids in zip(
            queries,
            positives,
            barred,
            hard_negatives.by_words(queries, texts, positives, barred, count),
        ):
            allowed = [
                i for i, w in enumerate(words) if score(query, w) > 0 and i not in own + other
            ]
            assert ids.tolist() == sorted(allowed, key=lambda i: -score(query, words[i]))[:count]
    assert hard_negatives.by_words(['?'], ['...', '!'], [[0]], [[]], 2)[0].tolist() == []


def test_written_pairs_are_read(tmp_path):
    """Catches text that is escaped wrongly, a field that is lost, half a file, and a file that is
    written over."""
    pairs = [Pair('', 'q "1"\n\u2028', ('p\t', 'olá'), ('n\x1b',)), Pair('', 'q', ('p',))]
    path = tmp_path / 'a.jsonl'
    read_pairs.write_pairs(path, pairs)
    assert [(p.query, p.positives, p.negatives) for p in read_pairs.read_file(path)] == [
        (p.query, p.positives, p.negatives) for p in pairs
    ]
    before = path.read_bytes()
    with pytest.raises(DataError, match='a.jsonl: is there already'):
        read_pairs.write_pairs(path, pairs[1:])
    with pytest.raises(ZeroDivisionError):
        read_pairs.write_pairs(tmp_path / 'b.jsonl', (1 / 0 for _ in range(2)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['a.jsonl']
    assert json.loads(before.splitlines()[-1]) == {'query': 'q', 'positives': ['p']}


def test_negatives_by_words_in_any_form():
    """Catches texts that share no word since its accents stand apart, since it has a ligature or
    is of a script without spaces, and texts that share a piece of one."""
    texts = [
        unicodedata.normalize('NFD', 'O café é bom'),
        'the ﬁnancial news',
        '今天我们去公园散步',
        'हिन्दी में',
        'read_csv',
        'none',
    ]
    asked = ['Café', 'financial', '公园', 'हिन्दी', 'ह', 'नदी', '花园', 'CSV', 'READ_CSV']
    negatives = hard_negatives.by_words(asked, texts, [[5]] * 9, [[]] * 9, 3)
    assert [ids.tolist() for ids in negatives] == [[0], [1], [2], [3], [], [], [], [], [4]]
